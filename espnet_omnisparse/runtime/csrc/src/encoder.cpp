#include "encoder.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"
#include "kernels/table.h"

namespace omnisparse {

namespace {

constexpr long kNowhere = std::numeric_limits<long>::min();

// ESPnet's encodings, in each lane that of a place, or zeros where that is nowhere.
template <class PlaceOf>
void encode(const Tiles& x, float scale, PlaceOf place_of) {
  std::fill_n(x.data, x.size(), 0.0f);
  const float base = -static_cast<float>(std::log(10000.0) / x.channels);
  for (int d = 0; d < x.channels; d += 2) {
    const float rate = std::exp(static_cast<float>(d) * base);
    for (int m = 0; m < x.frames; ++m) {
      const long place = place_of(m);
      if (place == kNowhere) continue;
      const float angle = static_cast<float>(place) * rate;
      float* to = x.tile(m / x.width) + static_cast<size_t>(d) * x.width + m % x.width;
      to[0] = scale * std::sin(angle);
      if (d + 1 < x.channels) to[x.width] = scale * std::cos(angle);
    }
  }
}

}  // namespace

Encoder::Encoder(const Container& file) {
  const Json& told = file.model().at("encoder");
  width_ = told.bounded("width", 1, 1 << 16);
  causal_ = told.at("causal").boolean();
  const std::string& positions = told.at("positions").string();
  if (positions == "relative") {
    places_ = Places::kRelative;
  } else if (positions == "legacy") {
    places_ = Places::kLegacy;
    place_count_ = told.bounded("position_count", 1, 1 << 24);
  } else if (positions == "absolute") {
    places_ = Places::kAbsolute;
    place_scale_ = static_cast<float>(told.at("position_scale").number());
  } else if (positions != "none") {
    throw Error("The model has " + positions +
                " positions, which this program has not: install a newer one.");
  }
  if (!told.at("chunk").is_null()) {
    chunk_.size = told.at("chunk").bounded("size", 1, 1 << 16);
    chunk_.left = told.at("chunk").bounded("left", 0, 1 << 16);
  }
  const float epsilon = static_cast<float>(told.at("norm_eps").number());
  const bool late = places_ == Places::kLegacy;
  const BranchOptions options{width_, epsilon, causal_, late || places_ == Places::kRelative,
                              late};
  bool needs_all = late || places_ == Places::kAbsolute;
  for (const Json& one : told.at("blocks").array()) {
    Block block;
    for (const Json& branch : one.at("branches").array()) {
      block.residuals.push_back({static_cast<float>(branch.at("scale").number()),
                                 read_branch(file, branch, options)});
      needs_all = needs_all || block.residuals.back().branch->needs_all();
    }
    if (!one.at("norm").is_null())
      block.norm = read_norm(file, one.at("norm").string(), epsilon, width_);
    blocks_.push_back(std::move(block));
  }
  norm_ = read_norm(file, told.at("norm").string(), epsilon, width_);
  if (causal_ && needs_all)
    throw Error("The model's encoder needs whole recordings and says that it does not.");
}

std::shared_ptr<const Positions> Encoder::positions(int past, int future,
                                                    Context& context) const {
  if (places_ == Places::kNone) return nullptr;
  const bool absolute = places_ == Places::kAbsolute, legacy = places_ == Places::kLegacy;
  std::lock_guard<std::mutex> lock(mutex_);
  // the last eight queries' band sticks out on both sides; the last tile is added to as a whole
  const long left = absolute ? 0 : past + 16, right = future + (absolute ? 32 : 48);
  if (made_ != nullptr && (legacy ? made_->zero == left
                                  : made_->zero >= left && made_->stride - made_->zero >= right))
    return made_;
  auto fresh = std::make_shared<Positions>();
  fresh->zero = left;
  fresh->stride = left + right;
  Scope scope(*context.scratch);
  const Tiles x = new_tiles(width_, static_cast<int>(fresh->stride), 32, context);
  if (absolute) {
    encode(x, place_scale_, [](long m) { return m; });
    fresh->encodings = rows_of(x);
  } else if (legacy) {
    // ESPnet's table has the last place first, and a recording begins there: what is so many
    // frames away has another encoding in recordings of another length
    const long last = std::max(place_count_, past);
    encode(x, 1.0f, [&](long m) {
      const long away = left - m;
      return away >= 0 ? last - past + away : away == -1 ? kNowhere : last + 1 + away;
    });
  } else {
    encode(x, 1.0f, [&](long m) { return left - m; });
  }
  for (const Block& block : blocks_)
    for (const Block::Residual& one : block.residuals)
      if (!absolute) one.branch->project(x, *fresh, context);
  made_ = fresh;
  return made_;
}

void Encoder::place(const Tiles& x, const Positions* positions) const {
  if (places_ != Places::kAbsolute) return;
  for (int t = 0; t < x.count(); ++t)
    for (int c = 0; c < width_; ++c)
      kernels().add(x.tile(t) + static_cast<size_t>(c) * x.width,
                    positions->encodings.data() + c * positions->stride + t * x.width, x.width);
}

EncoderStream::EncoderStream(std::shared_ptr<const Encoder> encoder, Chunk chunk,
                             Context& context)
    : encoder_(std::move(encoder)), chunk_(chunk), whole_(chunk.size == 0) {
  if (whole_) return;  // positions when the length is known
  positions_ = encoder_->positions(chunk.left + chunk.size, chunk.size, context);
  for (const Block& block : encoder_->blocks())
    for (const Block::Residual& one : block.residuals)
      past_.push_back(one.branch->past(chunk));
}

void EncoderStream::reset() {
  for (Past& past : past_) past.clear();
}

void EncoderStream::run(const Tiles& x, Context& context) {
  if (x.frames == 0) return;
  if (whole_) positions_ = encoder_->positions(x.frames, x.frames, context);
  encoder_->place(x, positions_.get());
  const Sight sight{whole_ ? encoder_->chunk() : chunk_, positions_.get()};
  size_t number = 0;
  for (const Block& block : encoder_->blocks()) {
    for (const Block::Residual& one : block.residuals) {
      Scope scope(*context.scratch);
      Past* past = whole_ ? nullptr : &past_[number++];
      one.branch->run(x, {x, Epilogue::kAdd, one.scale}, sight, past, context);
    }
    if (block.norm) block.norm->run(x, x, context);
  }
  encoder_->norm().run(x, x, context);
}

}  // namespace omnisparse
