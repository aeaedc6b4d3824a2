#include "threads.h"

#include <sched.h>
#include <unistd.h>

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
// very core.
// Returns false after `spins`, where there is a limit.
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

}  // namespace

void Shares::reset() {
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

Team::Team(int threads) : size_(threads), process_(int(getpid())) {
  for (int i = 1; i < threads; i++) threads_.emplace_back([this, i] { serve(i); });
}

Team::~Team() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    over_.store(true);
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool Team::inherited() const { return int(getpid()) != process_; }

void Team::run(const std::function<void(int)>& work) {
  if (size_ == 1) return work(0);
  work_ = &work;
  busy_.store(size_ - 1);
  round_.fetch_add(1);  // sequentially consistent, as asleep_ is: either we see the sleeper or it sees the new round
  if (asleep_.load() > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  work(0);
  spin([&] { return busy_.load(std::memory_order_acquire) == 0; }, -1);
}

void Team::serve(int index) {
  unsigned seen = 0;
  for (;;) {
    if (!spin([&] { return round_.load(std::memory_order_acquire) != seen; }, kSpins)) {
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.fetch_add(1);
      wake_.wait(lock, [&] { return round_.load() != seen; });
      asleep_.fetch_sub(1);
    }
    seen++;
    if (over_.load()) return;
    (*work_)(index);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace splore
