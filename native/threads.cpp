#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <chrono>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <thread>

#include "program.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace splore {
namespace {

inline void rest() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `done`, giving the processor away now and then: on a busy machine the thread that is waited for may be on this
// very core. Returns false after `spins`, where there is a limit.
template <class F>
bool spin(F done, int spins) {
  for (int i = 0; spins < 0 || i < spins; i++) {
    if (done()) return true;
    if (i % 128 == 127)
      sched_yield();
    else
      rest();
  }
  return done();
}

constexpr int kSpins = 4000;  // about 100 microseconds

struct Job {
  const std::function<void(int)>* work;
  std::atomic<int>* busy;  // helpers that have not finished
};

}  // namespace

// A thread that waits for jobs. It lives as long as the process.
struct Helper {
  enum State { kIdle, kPosted, kWorking };
  alignas(64) std::atomic<int> state{kIdle};
  std::atomic<bool> asleep{false};
  const Job* job = nullptr;  // while posted or working
  int index = 0;             // in the job
  std::mutex mutex;
  std::condition_variable wake;

  void post(const Job& next, int place) {
    job = &next, index = place;
    state.store(kPosted);  // sequentially consistent, as `asleep` is: either we see the sleeper or it sees the job
    if (!asleep.load()) return;
    std::lock_guard<std::mutex> lock(mutex);
    wake.notify_one();
  }

  // Whether it had not begun, and will not any more.
  bool withdraw() {
    int posted = kPosted;
    return state.compare_exchange_strong(posted, kIdle);
  }

  void serve() {
    for (;;) {
      if (!spin([&] { return state.load(std::memory_order_relaxed) == kPosted; }, kSpins)) {
        std::unique_lock<std::mutex> lock(mutex);
        asleep.store(true);
        wake.wait(lock, [&] { return state.load() == kPosted; });
        asleep.store(false);
      }
      int posted = kPosted;
      if (!state.compare_exchange_strong(posted, kWorking)) continue;
      (*job->work)(index);
      std::atomic<int>& busy = *job->busy;
      state.store(kIdle, std::memory_order_relaxed);
      busy.fetch_sub(1, std::memory_order_release);  // the job may be gone after this
    }
  }
};

namespace {

void before_fork() { shared().mutex.lock(); }
void in_parent() { shared().mutex.unlock(); }
void in_child() {
  Shared& all = shared();
  new (&all.changed) std::condition_variable;  // threads that the child does not have may wait at the old one
  all.planning = false;
  all.callers = all.leased = 0;
  all.idle.clear();
  all.mutex.unlock();
}

// Signals are for the program's own threads.
Helper* start_helper() {
  auto helper = std::make_unique<Helper>();
  sigset_t every, before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  try {
    std::thread([h = helper.get()] { h->serve(); }).detach();
  } catch (const std::system_error& error) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw Error(std::string("a thread can't be started: ") + error.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return helper.release();
}

}  // namespace

Shared& shared() {
  static Shared* all = new Shared;  // never destroyed: helpers outlive everything
  static const int forks = pthread_atfork(before_fork, in_parent, in_child);
  (void)forks;
  return *all;
}

void Shares::start(int team) {
  team_ = team;
  if (taken_.size() < size_t(2 * team)) taken_ = std::vector<Counter>(size_t(2 * team));
  for (Counter& counter : taken_) counter.value.store(0, std::memory_order_relaxed);
}

void Barrier::wait() {
  if (threads_ == 1) return;
  const unsigned round = round_.load(std::memory_order_acquire);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    waiting_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
  } else {
    spin([&] { return round_.load(std::memory_order_acquire) != round; }, -1);
  }
}

Team::Team(int threads, Lease lease) {
  Shared& all = shared();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.most_threads = std::max(all.most_threads, threads);
  int wanted = threads - 1;
  if (lease == kFair) wanted = std::min(wanted, std::max(0, all.most_threads - (all.callers + 1) - all.leased));
  helpers_.reserve(size_t(wanted));
  while (int(all.idle.size()) < wanted) {
    try {
      all.idle.reserve(all.idle.size() + size_t(all.leased) + 1);  // so that giving back never allocates
      all.idle.insert(all.idle.begin(), start_helper());
    } catch (const Error&) {
      if (lease == kAll) throw;
      wanted = int(all.idle.size());
    }
  }
  for (int i = 0; i < wanted; i++) {  // those that worked last, as the same workers as then
    helpers_.push_back(all.idle.back());
    all.idle.pop_back();
  }
  all.callers++;
  all.leased += wanted;
}

Team::~Team() {
  Shared& all = shared();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.callers--;
  all.leased -= int(helpers_.size());
  all.idle.insert(all.idle.end(), helpers_.rbegin(), helpers_.rend());
}

void Team::run(const std::function<void(int)>& work) {
  std::atomic<int> busy{int(helpers_.size())};
  const Job job{&work, &busy};
  for (size_t i = 0; i < helpers_.size(); i++) helpers_[i]->post(job, int(i) + 1);
  work(0);
  spin([&] { return busy.load(std::memory_order_acquire) == 0; }, -1);
}

void Team::run_loose(const std::function<void(int)>& work) {
  std::atomic<int> busy{int(helpers_.size())};
  const Job job{&work, &busy};
  for (size_t i = 0; i < helpers_.size(); i++) helpers_[i]->post(job, int(i) + 1);
  work(0);
  for (Helper* helper : helpers_)
    if (helper->withdraw()) busy.fetch_sub(1, std::memory_order_relaxed);
  spin([&] { return busy.load(std::memory_order_acquire) == 0; }, -1);
}

void Team::run_present(double milliseconds, const std::function<void(int)>& ready, const std::function<void(int)>& work) {
  const int count = int(helpers_.size());
  alignas(64) std::atomic<int> busy{count};
  alignas(64) std::atomic<int> come{0};
  alignas(64) std::atomic<bool> begun{false};
  std::vector<int> places(size_t(count) + 1, 0);  // in the smaller team, by the place in the whole one
  const std::function<void(int)> wait_and_work = [&](int index) {
    come.fetch_add(1, std::memory_order_relaxed);
    spin([&] { return begun.load(std::memory_order_acquire); }, -1);
    work(places[size_t(index)]);
  };
  const Job job{&wait_and_work, &busy};
  for (int i = 0; i < count; i++) helpers_[size_t(i)]->post(job, i + 1);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double, std::milli>(milliseconds);
  const auto all = [&] { return come.load(std::memory_order_relaxed) == count; };
  while (!spin(all, 256) && std::chrono::steady_clock::now() < end) {
  }
  int size = 1;
  for (int i = 0; i < count; i++) {
    if (helpers_[size_t(i)]->withdraw())
      busy.fetch_sub(1, std::memory_order_relaxed);
    else
      places[size_t(i) + 1] = size++;
  }
  ready(size);
  begun.store(true, std::memory_order_release);
  work(0);
  spin([&] { return busy.load(std::memory_order_acquire) == 0; }, -1);
}

}  // namespace splore
