// Runs every layer of the engine once in each of many shapes and with each instruction set,
// and compares with the plain one: for sanitizers and for CPUs that are emulated.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "omnisparse_kernels.h"

namespace {

std::mt19937 random_bits(1);
std::vector<float> results;

std::vector<float> normal(size_t count) {
  std::normal_distribution<float> draw;
  std::vector<float> x(count);
  for (float& value : x) value = draw(random_bits);
  return x;
}

void keep(const std::vector<float>& y) { results.insert(results.end(), y.begin(), y.end()); }

// Blocks of `height` rows and one column, all but some of them there; dense for height 0.
void linear(int rows, int columns, int type, int height, int frames, int epilogue) {
  std::vector<uint16_t> column;
  std::vector<int32_t> begin{0};
  size_t count = static_cast<size_t>(rows) * columns;
  if (height > 0) {
    for (int r = 0; r < rows; r += height) {
      for (int c = 0; c < columns; ++c) {
        if (random_bits() % 4 == 0) column.push_back(static_cast<uint16_t>(c));
      }
      begin.push_back(static_cast<int32_t>(column.size()));
    }
    count = column.size() * height;
  }
  const std::vector<float> values = normal(count), scale = normal(rows), bias = normal(rows);
  std::vector<int8_t> whole(count);
  for (int8_t& value : whole)
    value = static_cast<int8_t>(static_cast<int>(random_bits() % 255) - 127);
  const void* weights = type == 2 ? static_cast<const void*>(whole.data()) : values.data();
  const int gated = epilogue == 5;
  for (int threads : {1, 2}) {
    omnisparse_linear* layer = omnisparse_linear_new(
        rows, columns, type, weights, type == 2 ? scale.data() : nullptr, height,
        height > 0 ? 1 : 0, column.data(), begin.data(), bias.data(), gated, threads);
    if (layer == nullptr) std::exit(2);
    const std::vector<float> x = normal(static_cast<size_t>(frames) * columns);
    std::vector<float> y = normal(static_cast<size_t>(frames) * (gated ? rows / 2 : rows));
    if (omnisparse_linear_run(layer, x.data(), frames, epilogue, 0.5f, 0, y.data()) != 0)
      std::exit(3);
    omnisparse_linear_free(layer);
    keep(y);
  }
}

void layers(int frames, int channels) {
  const size_t size = static_cast<size_t>(frames) * channels;
  std::vector<float> x = normal(size), y(size);
  const std::vector<float> a = normal(channels), b = normal(channels);
  omnisparse_layer_norm(x.data(), frames, channels, a.data(), b.data(), 1e-5f, y.data());
  keep(y);
  omnisparse_log_softmax(x.data(), frames, channels, y.data());
  keep(y);
  for (int activation = 0; activation < 5; ++activation) {
    std::vector<float> z = x;
    omnisparse_activate(z.data(), static_cast<int>(size), activation);
    keep(z);
  }
  for (int kernel : {1, 4, 15}) {
    const std::vector<float> weight = normal(static_cast<size_t>(channels) * kernel);
    std::vector<float> past = normal(static_cast<size_t>(channels) * (kernel - 1) + 1);
    omnisparse_depthwise(x.data(), frames, channels, weight.data(), a.data(), kernel,
                         kernel - 1, past.data(), y.data());
    keep(y);
  }
}

void attention(int frames, int before, int heads, int width) {
  const int size = heads * width, keys = frames + before;
  const std::vector<float> qkv = normal(static_cast<size_t>(frames) * 3 * size),
                           past = normal(static_cast<size_t>(before) * 2 * size + 1),
                           positions = normal(static_cast<size_t>(2 * keys - 1) * size),
                           u = normal(size), v = normal(size);
  std::vector<float> y(static_cast<size_t>(frames) * size);
  omnisparse_attend(qkv.data(), frames, keys, heads, width, past.data(), positions.data(),
                    u.data(), v.data(), 2, y.data());
  keep(y);
}

void everything() {
  for (int frames : {1, 8, 13, 33})
    for (int height : {0, 1, 4, 8, 3})
      for (int type : {0, 2})
        for (int epilogue = 0; epilogue < 7; ++epilogue)
          linear(22, 19, type, height, frames, epilogue);
  for (int frames : {1, 9, 32, 41}) {
    layers(frames, 13);
    for (int before : {0, 5, 32}) attention(frames, before, 2, 12);
  }
}

}  // namespace

int main() {
  std::istringstream names(omnisparse_isas());
  std::vector<float> plain;
  omnisparse_force_isa("plain");
  everything();
  plain.swap(results);
  for (std::string name; names >> name;) {
    if (omnisparse_force_isa(name.c_str()) == 0 || omnisparse_isa() != name) return 4;
    random_bits.seed(1);
    results.clear();
    everything();
    float most = 0.0f;
    for (size_t i = 0; i < plain.size(); ++i) {
      const float apart = std::fabs(plain[i] - results[i]) / (1.0f + std::fabs(plain[i]));
      if (!(apart <= most)) most = apart;  // NaN too
    }
    std::printf("%s %g\n", name.c_str(), static_cast<double>(most));
    if (!(most < 1e-3f)) return 1;
  }
  return 0;
}
