#include "stream.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace omnisparse {

namespace {

bool all_finite(const Tiles& x) {
  float sum = 0.0f;
  for (int t = 0; t < x.frames; t += x.width) {
    const int lanes = std::min(x.width, x.frames - t);
    const float* row = x.tile(t / x.width);
    for (int c = 0; c < x.channels; ++c, row += x.width)
      for (int lane = 0; lane < lanes; ++lane) sum += 0.0f * row[lane];
  }
  return sum == 0.0f;
}

}  // namespace

Stream::Stream(std::shared_ptr<Model> model, Chunk chunk, int beam, bool keep)
    : model_(std::move(model)),
      context_{&model_->pool(), &scratch_},
      chunk_(chunk),
      features_(model_->features()),
      encoder_(model_->encoder(), chunk, context_),
      search_(model_->search(beam)),
      keep_(keep) {
  scratch_.reset();
}

void Stream::push(const float* samples, size_t count) {
  if (ended_) throw Error("This stream has ended: reset it, or make another one.");
  for (size_t i = 0; i < count; ++i) {
    if (!std::isfinite(samples[i])) throw Error("The audio has samples that are no numbers.");
    if (std::fabs(samples[i]) > 8.0f)
      throw Error("The audio has samples far beyond full scale, which is 1: scale it.");
  }
  take(samples, count, false);
}

void Stream::finish() {
  if (ended_) return;
  ended_ = true;
  take(nullptr, 0, true);
}

void Stream::reset() {
  ended_ = false;
  features_.reset();
  encoder_.reset();
  search_->reset();
  rows_.clear();
  for (Output& output : outputs_) output.rows.clear();
}

void Stream::take(const float* samples, size_t count, bool last) {
  for (Output& output : outputs_) output.rows.clear();
  const size_t mels = static_cast<size_t>(model_->features()->mels);
  fresh_.clear();
  if (last)
    features_.finish(fresh_);
  else
    features_.push(samples, count, fresh_);
  const Normalisation& normalisation = model_->normalisation();
  const bool whole = chunk_.size == 0;
  const bool later = normalisation.kind == Normalisation::Kind::kRecording;
  if (!later) normalisation.run(fresh_.data(), fresh_.size() / mels, mels);
  rows_.insert(rows_.end(), fresh_.begin(), fresh_.end());
  if (whole && !last) return;
  if (later) normalisation.run(rows_.data(), rows_.size() / mels, mels);
  if (keep_) {
    Output& kept = outputs_[static_cast<int>(Kind::kFeatures)];
    const std::vector<float>& rows = whole ? rows_ : fresh_;
    kept.rows.insert(kept.rows.end(), rows.begin(), rows.end());
    kept.columns = mels;
  }
  const FrontEnd& front = model_->front_end();
  while (true) {
    int frames = front.frames(static_cast<int>(rows_.size() / mels));
    if (!whole) frames = frames >= chunk_.size ? chunk_.size : last ? frames : 0;
    if (frames == 0) break;
    encode(frames);
    const size_t used = static_cast<size_t>(frames) * front.stride() * mels;
    rows_.erase(rows_.begin(), rows_.begin() + static_cast<long>(std::min(used, rows_.size())));
    if (whole) break;
  }
  if (last) rows_.clear();
}

void Stream::encode(int frames) {
  const FrontEnd& front = model_->front_end();
  const size_t mels = static_cast<size_t>(model_->features()->mels);
  {
    Scope scope(scratch_);
    const Tiles x = new_tiles(front.width(), frames, width_for(frames), context_);
    front.run(rows_.data(), static_cast<int>(rows_.size() / mels), x, context_);
    encoder_.run(x, context_);
    // a search would go on with it, and find nothing any more
    if (!all_finite(x))
      throw Error("The encoder's output is not finite: the model's weights are damaged.");
    if (keep_) keep(Kind::kEncoder, x);
    if (model_->is_transducer()) search_->push(x, context_);
    const Linear* head = model_->head();
    if (head != nullptr && (keep_ || !model_->is_transducer())) {
      const Tiles y = new_tiles(head->outputs(), frames, x.width, context_);
      head->run(x, y, Epilogue::kStore, 0.0f, context_);
      log_softmax(y, context_);
      if (keep_) keep(Kind::kLogProbabilities, y);
      if (!model_->is_transducer()) search_->push(y, context_);
    }
  }
  scratch_.reset();
}

void Stream::keep(Kind kind, const Tiles& tiles) {
  Output& output = outputs_[static_cast<int>(kind)];
  output.columns = static_cast<size_t>(tiles.channels);
  const size_t before = output.rows.size();
  output.rows.resize(before + static_cast<size_t>(tiles.frames) * tiles.channels);
  from_tiles(tiles, output.rows.data() + before);
}

const std::string& Stream::text() {
  search_->best(ids_, frames_);
  text_ = model_->spelling().text(ids_);
  return text_;
}

void Stream::tokens(std::vector<int>& ids, std::vector<float>& seconds) const {
  search_->best(ids, frames_);
  const float second = static_cast<float>(model_->front_end().stride() * model_->features()->hop) /
                       static_cast<float>(model_->sample_rate());
  seconds.clear();
  for (const int frame : frames_) seconds.push_back(static_cast<float>(frame) * second);
}

}  // namespace omnisparse
