// A small pool of threads of an engine. The caller works too; the others spin for a while after a piece of work, for the next
// one mostly comes soon, and then sleep.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace splore {

// The tasks of a step, in equal runs, one for each worker, which then helps the others: what it wrote in one step it mostly
// reads in the next, out of its own cache. Workers meet at a barrier between two steps.
class Shares {
 public:
  explicit Shares(int team) : team_(team), taken_(size_t(2 * team)) {}
  void reset();  // before the first step

  // Calls work(task) for the tasks that the worker gets of the step number `step`. Steps follow one another.
  template <class F>
  void run(size_t step, int64_t tasks, int worker, F work) {
    if (team_ == 1) {
      for (int64_t task = 0; task < tasks; task++) work(task);
      return;
    }
    // Nobody looks at the counters of the next step now: those of the last step are free again.
    counter(step + 1, worker).store(0, std::memory_order_relaxed);
    for (int i = 0; i < team_; i++) {
      const int owner = (worker + i) % team_;
      const int64_t begin = tasks * owner / team_, end = tasks * (owner + 1) / team_;
      const int64_t few = std::max<int64_t>(1, (end - begin) / 16);
      std::atomic<int64_t>& taken = counter(step, owner);
      while (begin + taken.load(std::memory_order_relaxed) < end) {
        const int64_t first = begin + taken.fetch_add(few, std::memory_order_relaxed);
        for (int64_t task = first; task < std::min(first + few, end); task++) work(task);
      }
    }
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  std::atomic<int64_t>& counter(size_t step, int worker) { return taken_[step % 2 * size_t(team_) + size_t(worker)].value; }

  const int team_;
  std::vector<Counter> taken_;
};

// Threads meet here between two steps of a program.
class alignas(64) Barrier {
 public:
  void reset(int threads) {
    threads_ = threads;
    waiting_.store(0);
  }
  void wait();

 private:
  int threads_ = 1;
  std::atomic<int> waiting_{0};
  alignas(64) std::atomic<unsigned> round_{0};
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
