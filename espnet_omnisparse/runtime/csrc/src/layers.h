// Layers as a packed file has them.
#pragma once

#include <string>
#include <vector>

#include "container.h"

namespace omnisparse {

// A norm over the channels of each frame.
struct Norm {
  std::vector<float> gamma, beta;
  float epsilon = 0.0f;
  void run(const Tiles& x, const Tiles& y, Context& context) const {
    layer_norm(x, gamma.data(), beta.data(), epsilon, y, context);
  }
};

// Each throws an Error unless what is in the file has that size (0: any).
Norm read_norm(const Container& file, const std::string& prefix, float epsilon, size_t size = 0);
// A layer whose bias, if the file has it, is `bias`.
Linear read_linear(const Container& file, const std::string& weight, const std::string& bias,
                   size_t rows, size_t columns, bool gated = false);
// A layer that the description tells of: {"weight": NAME, "bias": NAME or null}.
Linear read_linear(const Container& file, const Json& told, size_t rows, size_t columns);

Activation activation_of(const std::string& name);
Epilogue epilogue_of(Activation activation);

}  // namespace omnisparse
