// The texts of a beam as a tree: each is its last token and the text before that.
#pragma once

#include <memory>
#include <vector>

#include "search.h"

namespace omnisparse {

struct Text {
  Text* parent = nullptr;
  Text* child = nullptr;  // the first
  Text* next = nullptr;   // child of the same parent
  int token = kBlank;
  int frame = 0;          // that it was first extended in
  long depth = 0;         // tokens
  int users = 0;          // children included
  long stamp = -1;        // of whoever uses `slot`
  size_t slot = 0;
  bool ready = false;     // whether `memory` is filled
  std::vector<float> memory;
};

// One object for each text, so that all ways to it meet. What is used no more is used again.
class TextTree {
 public:
  // memory: floats that a search keeps with each text.
  explicit TextTree(size_t memory = 0);

  Text* root() const { return root_; }
  Text* child(Text* parent, int token, int frame);
  void keep(Text* text) { ++text->users; }
  void drop(Text* text);
  // Forgets the texts made since the last time that nobody kept.
  void sweep();
  // All texts that are kept begin with `text`: it is the root from now on.
  void settle(Text* text);
  // The tokens of a text from the recording's beginning on.
  void spell(const Text* text, std::vector<int>& ids, std::vector<int>& frames) const;
  // Nothing is kept any more: an empty tree.
  void reset();

 private:
  Text* fresh();
  void unlink(Text* text);

  size_t memory_;
  std::vector<std::unique_ptr<Text>> all_;
  std::vector<Text*> free_;
  std::vector<Text*> unsure_;
  Text* root_ = nullptr;
  std::vector<int> settled_, settled_frames_;
};

// The text so many tokens above another one.
Text* above(Text* text, long tokens);
// Whether a text is another one or grew from it.
bool grew_from(const Text* text, const Text* beginning);

}  // namespace omnisparse
