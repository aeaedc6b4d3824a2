// The workers of a run: how they share its tasks and wait for each other, and the threads of the process that they are.
//
// All engines of a process share one pool of helper threads. A run leases some for as long as it lasts, the caller works too,
// and callers that come together get fewer each, so that no more threads work than an engine asked for. Helpers spin for a
// while after a piece of work, for the next one mostly comes soon, and then sleep. They leave signals to the program.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

namespace splore {

// What all engines of the process share, under one lock that is only ever held for moments. A fork takes it first, so that a
// child finds everything whole; the child then forgets the threads that it does not have.
struct Shared {
  std::mutex mutex;
  std::condition_variable changed;  // after `planning`
  bool planning = false;            // one engine plans at a time, for it measures
  int callers = 0, leased = 0;      // threads in a run: those that called, and helpers
  int most_threads = 1;             // that an engine asked for
  std::vector<struct Helper*> idle;
};
Shared& shared();

// The tasks of a step, in equal runs, one for each worker, which then helps the others: what it wrote in one step it mostly
// reads in the next, out of its own cache. Workers meet at a barrier between two steps.
class Shares {
 public:
  void start(int team);  // before the first step

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

  int team_ = 1;
  std::vector<Counter> taken_;
};

// Threads meet here between two steps of a program.
class alignas(64) Barrier {
 public:
  void start(int threads) {
    threads_ = threads;
    waiting_.store(0);
  }
  void wait();

 private:
  int threads_ = 1;
  std::atomic<int> waiting_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

// What the workers of one run of a slice share.
struct Meeting {
  Shares shares;
  Barrier barrier;
  int workers = 1;
  void start(int count) {
    workers = count;
    shares.start(count);
    barrier.start(count);
  }
};

// The calling thread and the helpers that it leased, until the team goes.
class Team {
 public:
  enum Lease {
    kFair,  // as many as other callers leave
    kAll    // or throws Error
  };
  Team(int threads, Lease lease);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return int(helpers_.size()) + 1; }
  // Runs work(0) here and work(1).. on the others, and returns when all have returned. Work must not throw.
  void run(const std::function<void(int)>& work);
  // The same with those who are there: a helper whose processor is taken by others, by a spinning thread of OpenMP for example,
  // would start a scheduler's tick too late. After `milliseconds` it is left out, and the rest go on as a smaller team: they
  // start when ready(size) has returned.
  void run_present(double milliseconds, const std::function<void(int)>& ready, const std::function<void(int)>& work);
  // The same where helpers need not wait for each other: whoever comes before work(0) has returned takes part.
  void run_loose(const std::function<void(int)>& work);

 private:
  std::vector<Helper*> helpers_;
};

}  // namespace splore
