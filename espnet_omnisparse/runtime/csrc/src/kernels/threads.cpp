#include "threads.h"

#include <string>
#include <system_error>

#include "../error.h"

namespace omnisparse {

ThreadPool::ThreadPool(int threads) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  } catch (const std::system_error&) {
    const int started = this->threads();
    stop();  // there is no destructor of what was never whole
    throw Error("No more than " + std::to_string(started) +
                " threads can be started here: ask for fewer.");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  begun_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(int count, const std::function<void(int)>& task) {
  std::lock_guard<std::mutex> turn(callers_);
  std::unique_lock<std::mutex> lock(mutex_);
  task_ = &task;
  count_ = open_ = count;
  next_ = 0;
  begun_.notify_all();
  while (next_ < count_) {
    const int mine = next_++;
    lock.unlock();
    task(mine);
    lock.lock();
    --open_;
  }
  done_.wait(lock, [this] { return open_ == 0; });
  task_ = nullptr;
}

void ThreadPool::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    begun_.wait(lock, [this] { return stopping_ || (task_ != nullptr && next_ < count_); });
    if (stopping_) return;
    while (task_ != nullptr && next_ < count_) {
      const int mine = next_++;
      const auto* task = task_;
      lock.unlock();
      (*task)(mine);
      lock.lock();
      if (--open_ == 0) done_.notify_all();
    }
  }
}

}  // namespace omnisparse
