// A pool of threads that share the tasks of one loop at a time.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace omnisparse {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(0) .. task(count - 1), in any order, and returns when all are done. With one
  // thread, in order and without a lock; callers of one pool take turns.
  template <class Task>
  void each(int count, const Task& task) {
    if (workers_.empty() || count <= 1) {
      for (int i = 0; i < count; ++i) task(i);
      return;
    }
    // a reference and no copy: nothing is allocated
    run(count, std::ref(task));
  }

 private:
  void run(int count, const std::function<void(int)>& task);
  void work();
  void stop();

  std::vector<std::thread> workers_;
  std::mutex callers_;
  std::mutex mutex_;
  std::condition_variable begun_;
  std::condition_variable done_;
  const std::function<void(int)>* task_ = nullptr;
  int count_ = 0;
  int next_ = 0;
  int open_ = 0;
  bool stopping_ = false;
};

}  // namespace omnisparse
