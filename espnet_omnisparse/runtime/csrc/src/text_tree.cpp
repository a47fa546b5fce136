#include "text_tree.h"

#include <algorithm>

namespace omnisparse {

TextTree::TextTree(size_t memory) : memory_(memory) { reset(); }

void TextTree::reset() {
  free_.clear();
  unsure_.clear();
  settled_.clear();
  settled_frames_.clear();
  for (auto& text : all_) free_.push_back(text.get());
  root_ = fresh();
  keep(root_);
}

Text* TextTree::fresh() {
  if (free_.empty()) {
    all_.push_back(std::make_unique<Text>());
    all_.back()->memory.resize(memory_);
    free_.push_back(all_.back().get());
    free_.reserve(all_.size());
  }
  Text* text = free_.back();
  free_.pop_back();
  text->parent = text->child = text->next = nullptr;
  text->token = kBlank;
  text->frame = 0;
  text->depth = 0;
  text->users = 0;
  text->stamp = -1;
  text->ready = false;
  return text;
}

Text* TextTree::child(Text* parent, int token, int frame) {
  for (Text* text = parent->child; text != nullptr; text = text->next)
    if (text->token == token) return text;
  Text* text = fresh();
  text->parent = parent;
  text->next = parent->child;
  text->token = token;
  text->frame = frame;
  text->depth = parent->depth + 1;
  parent->child = text;
  keep(parent);
  unsure_.push_back(text);
  keep(text);  // until `sweep`
  return text;
}

void TextTree::unlink(Text* text) {
  Text** link = &text->parent->child;
  while (*link != text) link = &(*link)->next;
  *link = text->next;
  text->parent = text->next = nullptr;
}

void TextTree::drop(Text* text) {
  while (text != nullptr && --text->users == 0) {
    Text* parent = text->parent;
    if (parent != nullptr) unlink(text);
    free_.push_back(text);
    text = parent;
  }
}

void TextTree::sweep() {
  for (Text* text : unsure_) drop(text);
  unsure_.clear();
}

void TextTree::settle(Text* text) {
  if (text == root_) return;
  const size_t before = settled_.size(), more = text->depth - root_->depth;
  settled_.resize(before + more);
  settled_frames_.resize(before + more);
  size_t at = before + more;
  for (Text* one = text; one != root_; one = one->parent) {
    settled_[--at] = one->token;
    settled_frames_[at] = one->frame;
  }
  Text *old = root_, *parent = text->parent;
  keep(text);
  unlink(text);
  root_ = text;
  drop(parent);
  drop(old);
}

void TextTree::spell(const Text* text, std::vector<int>& ids, std::vector<int>& frames) const {
  const size_t before = settled_.size(), more = text->depth - root_->depth;
  ids.resize(before + more);
  frames.resize(before + more);
  std::copy(settled_.begin(), settled_.end(), ids.begin());
  std::copy(settled_frames_.begin(), settled_frames_.end(), frames.begin());
  for (size_t at = before + more; at-- > before; text = text->parent) {
    ids[at] = text->token;
    frames[at] = text->frame;
  }
}

Text* above(Text* text, long tokens) {
  for (; tokens > 0; --tokens) text = text->parent;
  return text;
}

bool grew_from(const Text* text, const Text* beginning) {
  while (text != nullptr && text->depth > beginning->depth) text = text->parent;
  return text == beginning;
}

}  // namespace omnisparse
