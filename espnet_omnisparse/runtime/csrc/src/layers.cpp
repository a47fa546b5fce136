#include "layers.h"

#include "error.h"

namespace omnisparse {

Norm read_norm(const Container& file, const std::string& prefix, float epsilon, size_t size) {
  Norm norm{file.floats(prefix + ".weight", size), file.floats(prefix + ".bias", size), epsilon};
  if (norm.gamma.size() != norm.beta.size()) throw Error("The norm " + prefix + " is damaged.");
  return norm;
}

Linear read_linear(const Container& file, const std::string& weight, const std::string& bias,
                   size_t rows, size_t columns, bool gated) {
  const WeightView view = file.matrix(weight, rows, columns);
  std::vector<float> values;
  if (file.has(bias)) values = file.floats(bias, static_cast<size_t>(view.rows));
  return Linear({view}, {values.empty() ? nullptr : values.data()}, gated);
}

Linear read_linear(const Container& file, const Json& told, size_t rows, size_t columns) {
  const Json& bias = told.at("bias");
  return read_linear(file, told.at("weight").string(), bias.is_null() ? "" : bias.string(), rows,
                     columns);
}

Activation activation_of(const std::string& name) {
  if (name == "swish") return Activation::kSwish;
  if (name == "relu") return Activation::kRelu;
  if (name == "tanh") return Activation::kTanh;
  if (name == "gelu") return Activation::kGelu;
  if (name == "hardtanh") return Activation::kHardTanh;
  if (name == "selu") return Activation::kSelu;
  if (name == "none") return Activation::kNone;
  throw Error("The model has the activation " + name +
              ", which this program has not: install a newer one.");
}

Epilogue epilogue_of(Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return Epilogue::kRelu;
    case Activation::kTanh:
      return Epilogue::kTanh;
    case Activation::kGelu:
      return Epilogue::kGelu;
    case Activation::kHardTanh:
      return Epilogue::kHardTanh;
    case Activation::kSelu:
      return Epilogue::kSelu;
    case Activation::kNone:
      return Epilogue::kStore;
    default:
      return Epilogue::kSwish;
  }
}

}  // namespace omnisparse
