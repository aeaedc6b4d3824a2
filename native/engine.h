// An engine: a checked program, and the slices that its batches are run in.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "slice.h"

namespace splore {

class Engine {
 public:
  Engine(const splore_program& program, const std::string& isa);
  ~Engine();

  void force(const std::string& kernel);
  void plan(int64_t batch, int threads);
  void run(const float* in, float* out, int64_t batch);

  const Shape& output() const { return program_.shapes.back(); }
  const Kernels& kernels() const { return *kernels_; }
  double peak() const;
  int64_t workspace_bytes();
  int64_t packed_bytes();
  std::string table();

 private:
  // How a batch is cut: `alone` slices that each thread runs by itself, the last of them with lanes to spare, then `shared`
  // ones of full lanes that all threads share, then the rest.
  struct Cut {
    int64_t alone = 0, shared = 0;
    int rest = 0;
    bool rest_pixels = true;
  };
  const Cut& cut(int64_t batch);
  std::vector<Cut> tails(int64_t images) const;
  std::vector<SliceKind> kinds(const Cut& cut) const;
  Slice& slice(const SliceKind& kind);  // until the next call of it
  double time(const Cut& cut, int64_t images);
  float* memory(ptrdiff_t floats);
  void run(const Cut& cut, const float* in, float* out, int64_t batch);
  void run_shared(const SliceKind& kind, const float* in, float* out, int images);
  void ready();

  const Program program_;
  const Kernels* kernels_;
  std::string forced_;
  int threads_ = 1;
  int64_t batch_ = 0;  // of the last plan
  std::map<SliceKind, std::unique_ptr<Slice>> slices_;
  std::map<int64_t, Cut> cuts_;
  std::unique_ptr<Team> team_;
  AlignedVector<float> memory_;
  int process_;
  std::unique_ptr<std::mutex> mutex_;
  friend struct Locked;
};

}  // namespace splore
