#include <algorithm>

#include "error.h"
#include "layers.h"
#include "transducer.h"

namespace omnisparse {

namespace {

float* row(const Tiles& tiles, int channel) {
  return tiles.data + static_cast<size_t>(channel) * tiles.width;
}

// Rows first .. first + count become their sigmoids, by way of tanh.
void sigmoid(const Tiles& tiles, int first, int count, Context& context) {
  const Tiles part = tiles.slice(first, count);
  for (size_t i = 0; i < part.size(); ++i) part.data[i] *= 0.5f;
  activate(part, Activation::kTanh, context);
  for (size_t i = 0; i < part.size(); ++i) part.data[i] = 0.5f * part.data[i] + 0.5f;
}

void tanh_rows(const Tiles& tiles, int first, int count, Context& context) {
  activate(tiles.slice(first, count), Activation::kTanh, context);
}

// From a state of each lane into a tile, zeros where there is none, and back.
void gather(const float* const* states, int count, size_t offset, const Tiles& to) {
  std::fill_n(to.data, to.size(), 0.0f);
  for (int lane = 0; lane < count; ++lane) {
    if (states[lane] == nullptr) continue;
    for (int c = 0; c < to.channels; ++c) row(to, c)[lane] = states[lane][offset + c];
  }
}

void scatter(const Tiles& from, int count, size_t offset, float* const* states) {
  for (int lane = 0; lane < count; ++lane)
    for (int c = 0; c < from.channels; ++c) states[lane][offset + c] = row(from, c)[lane];
}

}  // namespace

Predictor::Predictor(const Container& file, const Json& told, int vocabulary) {
  const std::string& table = told.at("embedding").string();
  embedding_ = file.floats(table);
  const size_t size = embedding_.size() / static_cast<size_t>(vocabulary);
  if (size == 0 || size > 1 << 16 || size * vocabulary != embedding_.size())
    throw Error("The model's embedding does not fit its tokens: export it again.");
  inputs_ = width_ = static_cast<int>(size);
  const std::string& kind = told.at("kind").string();
  if (kind == "stateless") return;
  long_short_ = kind == "lstm";
  if (!long_short_ && kind != "gru")
    throw Error("The model's prediction network is of the kind " + kind +
                ", which this program has not: install a newer one.");
  width_ = told.bounded("hidden", 1, 1 << 14);
  const size_t rows = static_cast<size_t>(width_) * (long_short_ ? 4 : 3);
  size_t inputs = size;
  for (const Json& prefix : told.at("layers").array()) {
    const std::string name = prefix.string() + ".";
    layers_.push_back({read_linear(file, name + "weight_ih_l0", name + "bias_ih_l0", rows, inputs),
                       read_linear(file, name + "weight_hh_l0", name + "bias_hh_l0", rows,
                                   static_cast<size_t>(width_))});
    inputs = static_cast<size_t>(width_);
  }
  if (layers_.empty()) throw Error("The model's prediction network has no layers.");
}

void Predictor::step(const int* labels, const float* const* before, float* const* after,
                     int count, const Tiles& out, Context& context) const {
  Scope scope(*context.scratch);
  Tiles x = layers_.empty() ? out : new_tiles(inputs_, kLanes, kLanes, context);
  std::fill_n(x.data, x.size(), 0.0f);
  for (int lane = 0; lane < count; ++lane) {
    const float* from = embedding_.data() + static_cast<size_t>(labels[lane]) * inputs_;
    for (int c = 0; c < inputs_; ++c) row(x, c)[lane] = from[c];
  }
  size_t offset = 0;
  for (const Layer& layer : layers_) {
    const Tiles h = &layer == &layers_.back() ? out : new_tiles(width_, kLanes, kLanes, context);
    gather(before, count, offset, h);
    if (long_short_) {
      Scope inner(*context.scratch);
      const Tiles c = new_tiles(width_, kLanes, kLanes, context);
      gather(before, count, offset + static_cast<size_t>(width_), c);
      long_short(layer, x, h, c, context);
      scatter(c, count, offset + static_cast<size_t>(width_), after);
    } else {
      gated(layer, x, h, context);
    }
    scatter(h, count, offset, after);
    offset += static_cast<size_t>(width_) * (long_short_ ? 2 : 1);
    x = h;
  }
}

// PyTorch's LSTM: rows of the gates in, forget, new, out.
void Predictor::long_short(const Layer& layer, const Tiles& x, const Tiles& h, const Tiles& c,
                           Context& context) const {
  const Tiles gates = new_tiles(4 * width_, kLanes, kLanes, context);
  layer.input.run(x, gates, Epilogue::kStore, 0.0f, context);
  layer.hidden.run(h, gates, Epilogue::kAdd, 1.0f, context);
  sigmoid(gates, 0, 2 * width_, context);
  tanh_rows(gates, 2 * width_, width_, context);
  sigmoid(gates, 3 * width_, width_, context);
  const size_t size = c.size();
  const float* in = gates.data;
  for (size_t i = 0; i < size; ++i) {
    c.data[i] = in[size + i] * c.data[i] + in[i] * in[2 * size + i];
    h.data[i] = c.data[i];
  }
  activate(h, Activation::kTanh, context);
  for (size_t i = 0; i < size; ++i) h.data[i] *= in[3 * size + i];
}

// PyTorch's GRU: rows of the gates reset, update, new.
void Predictor::gated(const Layer& layer, const Tiles& x, const Tiles& h,
                      Context& context) const {
  Scope scope(*context.scratch);
  const Tiles gates = new_tiles(3 * width_, kLanes, kLanes, context);
  const Tiles past = new_tiles(3 * width_, kLanes, kLanes, context);
  layer.input.run(x, gates, Epilogue::kStore, 0.0f, context);
  layer.hidden.run(h, past, Epilogue::kStore, 0.0f, context);
  const size_t size = h.size();
  float* in = gates.data;
  for (size_t i = 0; i < 2 * size; ++i) in[i] += past.data[i];
  sigmoid(gates, 0, 2 * width_, context);
  for (size_t i = 0; i < size; ++i) in[2 * size + i] += in[i] * past.data[2 * size + i];
  tanh_rows(gates, 2 * width_, width_, context);
  for (size_t i = 0; i < size; ++i)
    h.data[i] = in[2 * size + i] + in[size + i] * (h.data[i] - in[2 * size + i]);
}

}  // namespace omnisparse
