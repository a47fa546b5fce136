#include "container.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "error.h"

namespace omnisparse {

namespace {

constexpr size_t kLongestHeader = 100u << 20;
constexpr char kSumKey[] = "\"crc32\":\"";

[[noreturn]] void damaged(const std::string& what) {
  throw Error("The model file is damaged (" + what + "): copy or export it again.");
}

uint64_t little_endian(const unsigned char* bytes, int count) {
  uint64_t value = 0;
  for (int i = count - 1; i >= 0; --i) value = value << 8 | bytes[i];
  return value;
}

size_t product(size_t a, size_t b) {
  size_t result;
  if (__builtin_mul_overflow(a, b, &result)) damaged("a shape is impossible");
  return result;
}

size_t bytes_of(const std::string& type) {
  if (type == "F32" || type == "I32") return 4;
  if (type == "F64" || type == "I64") return 8;
  if (type == "F16" || type == "U16") return 2;
  if (type == "I8" || type == "U8" || type == "BOOL") return 1;
  damaged("a tensor is of the unknown type " + type);
}

// CRC-32 as zlib has it, eight bytes at a time.
class Crc {
 public:
  void add(const unsigned char* data, size_t size) {
    const auto& table = tables();
    uint32_t crc = ~sum_;
    for (; size >= 8; data += 8, size -= 8) {
      const uint32_t low = crc ^ static_cast<uint32_t>(little_endian(data, 4));
      const uint32_t high = static_cast<uint32_t>(little_endian(data + 4, 4));
      crc = table.at[7][low & 255] ^ table.at[6][low >> 8 & 255] ^ table.at[5][low >> 16 & 255] ^
            table.at[4][low >> 24] ^ table.at[3][high & 255] ^ table.at[2][high >> 8 & 255] ^
            table.at[1][high >> 16 & 255] ^ table.at[0][high >> 24];
    }
    for (; size > 0; ++data, --size) crc = crc >> 8 ^ table.at[0][(crc ^ *data) & 255];
    sum_ = ~crc;
  }
  uint32_t sum() const { return sum_; }

 private:
  struct Tables {
    uint32_t at[8][256];
    Tables() {
      for (uint32_t n = 0; n < 256; ++n) {
        uint32_t c = n;
        for (int k = 0; k < 8; ++k) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        at[0][n] = c;
      }
      for (int t = 1; t < 8; ++t)
        for (int n = 0; n < 256; ++n)
          at[t][n] = at[t - 1][n] >> 8 ^ at[0][at[t - 1][n] & 255];
    }
  };
  static const Tables& tables() {
    static const Tables made;
    return made;
  }
  uint32_t sum_ = 0;
};

}  // namespace

Container::Container(const std::string& path) {
  try {
    read(path);
  } catch (...) {
    if (mapped_) munmap(bytes_, size_);
    throw;
  }
}

Container::~Container() {
  if (mapped_) munmap(bytes_, size_);
}

void Container::read(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw Error("The model " + path + " cannot be opened (" + std::strerror(errno) + ").");
  struct stat status {};
  const bool regular = fstat(file, &status) == 0 && S_ISREG(status.st_mode);
  size_ = regular ? static_cast<size_t>(status.st_size) : 0;
  if (size_ >= 16) {
    void* at = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
    mapped_ = at != MAP_FAILED;
    bytes_ = mapped_ ? static_cast<unsigned char*>(at) : nullptr;
  }
  close(file);
  const Error not_ours(path + " is not a packed model: omnisparse export makes one.");
  if (!mapped_) throw not_ours;
  const uint64_t header = little_endian(bytes_, 8);
  if (header > kLongestHeader || bytes_[8] != '{') throw not_ours;
  if (header > size_ - 8) damaged("it is shorter than it says");
  const char* text = reinterpret_cast<const char*>(bytes_ + 8);
  const Json head = Json::parse(text, header);
  const Json* metadata = head.find("__metadata__");
  const Json* format = metadata != nullptr ? metadata->find("format") : nullptr;
  if (format == nullptr || format->string() != "omnisparse") throw not_ours;
  const std::string& version = metadata->at("version").string();
  if (version != "1")
    throw Error(path + " is a packed model of version " + version +
                ", and this program reads version 1: install a newer one.");
  check_sum(8 + header);
  const unsigned char* data = bytes_ + 8 + header;
  for (const auto& entry : head.object()) {
    if (entry.first != "__metadata__") add(entry.first, entry.second, data, size_ - 8 - header);
  }
  const std::string& model = metadata->at("model").string();
  model_ = Json::parse(model.data(), model.size());
}

void Container::check_sum(size_t header) const {
  const size_t key = sizeof(kSumKey) - 1;
  const void* found = memmem(bytes_, header, kSumKey, key);
  if (found == nullptr) damaged("it has no checksum");
  const size_t at = static_cast<size_t>(static_cast<const unsigned char*>(found) - bytes_) + key;
  if (at + 8 > header) damaged("it has no checksum");
  Crc crc;
  crc.add(bytes_, at);
  crc.add(reinterpret_cast<const unsigned char*>("00000000"), 8);
  crc.add(bytes_ + at + 8, size_ - at - 8);
  char expected[9];
  std::snprintf(expected, sizeof(expected), "%08x", crc.sum());
  if (std::memcmp(expected, bytes_ + at, 8) != 0) damaged("its checksum is another");
}

void Container::add(const std::string& name, const Json& entry, const unsigned char* data,
                    size_t size) {
  Tensor tensor;
  tensor.type = entry.at("dtype").string();
  tensor.count = 1;
  for (const Json& dimension : entry.at("shape").array()) {
    const long extent = dimension.whole();
    if (extent < 0) damaged("a shape is negative");
    tensor.shape.push_back(static_cast<size_t>(extent));
    tensor.count = product(tensor.count, tensor.shape.back());
  }
  const auto& offsets = entry.at("data_offsets").array();
  if (offsets.size() != 2) damaged("a tensor has no place");
  const long begin = offsets[0].whole(), end = offsets[1].whole();
  if (begin < 0 || end < begin || static_cast<size_t>(end) > size)
    damaged("a tensor lies outside of it");
  if (static_cast<size_t>(end - begin) != product(tensor.count, bytes_of(tensor.type)))
    damaged("a tensor's shape is not its size");
  tensor.data = data + begin;
  if (reinterpret_cast<uintptr_t>(tensor.data) % bytes_of(tensor.type) != 0)
    damaged("a tensor is not aligned");
  if (!tensors_.emplace(name, std::move(tensor)).second) damaged("a tensor is there twice");
}

const Tensor& Container::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) damaged("it has no " + name);
  return found->second;
}

std::vector<float> Container::floats(const std::string& name, size_t count) const {
  const Tensor& found = tensor(name);
  if (count != 0 && found.count != count) damaged(name + " is of another size");
  std::vector<float> values(found.count);
  if (found.type == "F32") {
    std::memcpy(values.data(), found.data, found.count * sizeof(float));
  } else if (found.type == "F64") {
    for (size_t i = 0; i < found.count; ++i) {
      double value;
      std::memcpy(&value, found.data + 8 * i, sizeof(value));
      values[i] = static_cast<float>(value);
    }
  } else if (found.type == "F16") {
    for (size_t i = 0; i < found.count; ++i)
      values[i] = from_half(static_cast<uint16_t>(little_endian(found.data + 2 * i, 2)));
  } else {
    damaged(name + " is not of floating numbers");
  }
  return values;
}

WeightView Container::matrix(const std::string& name, size_t rows, size_t columns) const {
  const Json* sparse = model_.at("sparse").find(name);
  std::vector<size_t> shape;
  std::vector<long> block;
  if (sparse != nullptr) {
    for (const Json& extent : sparse->at("shape").array()) {
      if (extent.whole() < 0) damaged("a shape is negative");
      shape.push_back(static_cast<size_t>(extent.whole()));
    }
    for (const Json& extent : sparse->at("block").array()) block.push_back(extent.whole());
    if (block.size() != 2 || block[0] < 1 || block[1] < 1 || block[0] > 4096 || block[1] > 4096)
      damaged("the blocks of " + name + " are impossible");
  } else {
    shape = tensor(name).shape;
  }
  if (shape.size() < 2) damaged(name + " is no matrix");
  size_t inputs = 1;
  for (size_t i = 1; i < shape.size(); ++i) inputs = product(inputs, shape[i]);
  if (shape[0] > 1u << 24 || inputs > 1u << 24 || product(shape[0], inputs) > 1u << 27)
    damaged(name + " is too large");
  if ((rows != 0 && shape[0] != rows) || (columns != 0 && inputs != columns))
    damaged(name + " is of another shape");

  WeightView view;
  view.rows = static_cast<int>(shape[0]);
  view.columns = static_cast<int>(inputs);
  const Tensor& values = tensor(sparse != nullptr ? name + ".values" : name);
  view.values = values.data;
  view.type = values.type == "F32"   ? DType::kF32
              : values.type == "F16" ? DType::kF16
                                     : DType::kI8;
  if (values.type != "F32" && values.type != "F16" && values.type != "I8")
    damaged(name + " is not of numbers that a product can have");
  if (view.type == DType::kI8) {
    const Tensor& scale = tensor(name + ".scale");
    if (scale.type != "F32" || scale.count != shape[0]) damaged("the scale of " + name);
    view.scale = reinterpret_cast<const float*>(scale.data);
  }
  if (sparse == nullptr) return view;
  view.block_rows = static_cast<int>(block[0]);
  view.block_columns = static_cast<int>(block[1]);
  const size_t down = (shape[0] + block[0] - 1) / block[0];
  const size_t across = (inputs + block[1] - 1) / block[1];
  const Tensor& begin = tensor(name + ".rows");
  const Tensor& column = tensor(name + ".columns");
  if (begin.type != "I32" || begin.count != down + 1 || column.type != "U16" ||
      values.count != product(column.count, static_cast<size_t>(block[0] * block[1])))
    damaged("the blocks of " + name);
  view.block_begin = reinterpret_cast<const int32_t*>(begin.data);
  view.block_column = reinterpret_cast<const uint16_t*>(column.data);
  for (size_t i = 0; i < down; ++i) {
    if (view.block_begin[i] > view.block_begin[i + 1]) damaged("the blocks of " + name);
  }
  if (view.block_begin[0] != 0 || static_cast<size_t>(view.block_begin[down]) != column.count)
    damaged("the blocks of " + name);
  for (size_t i = 0; i < column.count; ++i) {
    if (view.block_column[i] >= across) damaged("the blocks of " + name);
  }
  return view;
}

}  // namespace omnisparse
