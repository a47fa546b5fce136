// A packed file: safetensors with the description of a model in its metadata. Nothing in it is
// trusted: every offset, shape and count is checked before it is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "json.h"
#include "kernels/ops.h"

namespace omnisparse {

struct Tensor {
  std::string type;  // F32, F16, I8, U16, I32, I64, U8
  std::vector<size_t> shape;
  const unsigned char* data = nullptr;
  size_t count = 0;
};

class Container {
 public:
  // Throws an Error if the file is not a whole packed model of this version.
  explicit Container(const std::string& path);
  ~Container();
  Container(const Container&) = delete;
  Container& operator=(const Container&) = delete;

  const Json& model() const { return model_; }

  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  const Tensor& tensor(const std::string& name) const;
  // All of a tensor, as floats; throws unless it has `count` elements (0: any number).
  std::vector<float> floats(const std::string& name, size_t count = 0) const;
  // A weight as a matrix [first dimension, the rest]; throws unless it has that shape
  // (0: any).
  WeightView matrix(const std::string& name, size_t rows = 0, size_t columns = 0) const;

 private:
  void read(const std::string& path);
  void check_sum(size_t header) const;
  void add(const std::string& name, const Json& entry, const unsigned char* data, size_t size);

  unsigned char* bytes_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;
  Json model_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace omnisparse
