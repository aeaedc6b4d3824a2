// A small pool of threads of an engine. The caller works too; the others spin for a while after a piece of work, for the next
// one mostly comes soon, and then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace splore {

// Threads meet here between two steps of a program.
class Barrier {
 public:
  void reset(int threads) {
    threads_ = threads;
    waiting_.store(0);
  }
  void wait();

 private:
  int threads_ = 1;
  std::atomic<int> waiting_{0};
  std::atomic<unsigned> round_{0};
};

class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }
  // Runs work(0) here and work(1).. on the others, and returns when all have returned. Work must not throw.
  void run(const std::function<void(int)>& work);
  // After a fork, in the child: the other threads don't exist any more. The team must be leaked, not destroyed.
  bool inherited() const;

 private:
  void serve(int index);

  const int size_;
  const int process_;
  const std::function<void(int)>* work_ = nullptr;
  std::atomic<unsigned> round_{0};
  std::atomic<int> busy_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> over_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

}  // namespace splore
