#include "transducer.h"

#include <algorithm>

#include "layers.h"

namespace omnisparse {

Transducer::Transducer(const Container& file, int vocabulary, int encoder_width)
    : predictor_(file, file.model().at("transducer").at("predictor"), vocabulary) {
  const Json& joint = file.model().at("transducer").at("joint");
  encoder_ = read_linear(file, joint.at("encoder"), 0, encoder_width);
  decoder_ = read_linear(file, joint.at("decoder"), encoder_.outputs(), predictor_.outputs());
  output_ = read_linear(file, joint.at("output"), vocabulary, encoder_.outputs());
  activation_ = activation_of(joint.at("activation").string());
}

void Transducer::extend(const int* labels, const float* const* before, float* const* after,
                        int count, Context& context) const {
  Scope scope(*context.scratch);
  const Tiles out = new_tiles(predictor_.outputs(), kLanes, kLanes, context);
  const Tiles placed = new_tiles(width(), kLanes, kLanes, context);
  predictor_.step(labels, before, after, count, out, context);
  decoder_.run(out, placed, Epilogue::kStore, 0.0f, context);
  for (int lane = 0; lane < count; ++lane)
    for (int c = 0; c < width(); ++c)
      after[lane][predictor_.state() + c] = placed.data[static_cast<size_t>(c) * kLanes + lane];
}

void Transducer::project(const Tiles& frames, const Tiles& out, Context& context) const {
  encoder_.run(frames, out, Epilogue::kStore, 0.0f, context);
}

void Transducer::joint(const Tiles& projected, const int* frames, const float* const* memories,
                       int count, const Tiles& scores, Context& context) const {
  Scope scope(*context.scratch);
  const Tiles both = new_tiles(width(), kLanes, kLanes, context);
  std::fill_n(both.data, both.size(), 0.0f);
  for (int lane = 0; lane < count; ++lane) {
    const float* frame =
        projected.tile(frames[lane] / projected.width) + frames[lane] % projected.width;
    const float* text = memories[lane] + predictor_.state();
    for (int c = 0; c < width(); ++c)
      both.data[static_cast<size_t>(c) * kLanes + lane] =
          frame[static_cast<size_t>(c) * projected.width] + text[c];
  }
  activate(both, activation_, context);
  output_.run(both, scores, Epilogue::kStore, 0.0f, context);
}

GreedyTransducer::GreedyTransducer(std::shared_ptr<const Transducer> transducer)
    : transducer_(std::move(transducer)),
      memory_(transducer_->memory()),
      next_(transducer_->memory()) {
  ids_.reserve(kRoomForTokens);
  frames_.reserve(kRoomForTokens);
}

void GreedyTransducer::reset() {
  begun_ = false;
  frame_ = 0;
  ids_.clear();
  frames_.clear();
}

void GreedyTransducer::best(std::vector<int>& ids, std::vector<int>& frames) const {
  ids = ids_;
  frames = frames_;
}

void GreedyTransducer::extend(int token, Context& context) {
  const float* before = begun_ ? memory_.data() : nullptr;
  float* after = next_.data();
  transducer_->extend(&token, &before, &after, 1, context);
  memory_.swap(next_);
  begun_ = true;
}

void GreedyTransducer::push(const Tiles& frames, Context& context) {
  Scope scope(*context.scratch);
  if (!begun_) extend(kBlank, context);
  const Tiles projected =
      new_tiles(transducer_->width(), frames.frames, frames.width, context);
  const Tiles scores = new_tiles(transducer_->vocabulary(), kLanes, kLanes, context);
  transducer_->project(frames, projected, context);
  int symbols = 0;  // of this frame
  for (int t = 0; t < frames.frames;) {
    // most frames are blank: some are asked at once, and again from where one is not
    int asked[kLanes], token[kLanes];
    const float* memories[kLanes];
    const int count = std::min(kLanes, frames.frames - t);
    for (int i = 0; i < count; ++i) {
      asked[i] = t + i;
      memories[i] = memory_.data();
    }
    transducer_->joint(projected, asked, memories, count, scores, context);
    argmax(scores.data, scores.channels, kLanes, token);
    int i = 0;
    for (; i < count && token[i] == kBlank; ++i) symbols = 0;
    t += i;
    if (i == count) continue;
    ids_.push_back(token[i]);
    frames_.push_back(frame_ + t);
    extend(token[i], context);
    if (++symbols == kMostSymbols) {
      symbols = 0;
      ++t;
    }
  }
  frame_ += frames.frames;
}

}  // namespace omnisparse
