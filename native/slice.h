// A slice: the program lowered to steps for some images at a time, in one layout, with its own plan of kernels and memory.
#pragma once

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "conv_step.h"
#include "layout.h"
#include "program.h"
#include "step.h"
#include "threads.h"

namespace splore {

struct SliceKind {
  bool pixels;  // the layout
  int images;   // at once; the lanes in the images layout
  int team;     // threads that share each step
  bool operator<(const SliceKind& o) const { return std::tie(pixels, images, team) < std::tie(o.pixels, o.images, o.team); }
};

// Milliseconds. A thread that works alone looks at its own time on the processor, which other processes don't disturb.
double now(bool alone);

bool hasty();  // SPLORE_PLAN=fast: no timing, the first of all candidates

class Slice {
 public:
  Slice(const Program& program, const Kernels& kernels, const SliceKind& kind, const std::string& forced);

  // Times the candidates of every convolution, in order, on noise; `arena` is of arena_floats() floats.
  void tune(Team& team, float* arena);
  // The calling thread as worker `index` of kind.team: all of them call this with the same run.
  void work(int index, const Run& run, float* scratch);
  // Before the workers start.
  void begin();

  ptrdiff_t arena_floats() const { return arena_floats_; }
  ptrdiff_t scratch_floats() const;  // of each worker
  // Arena and the scratch of the whole team.
  ptrdiff_t workspace() const { return arena_floats_ + kind.team * scratch_floats(); }
  int64_t packed_bytes() const;
  const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }

  const SliceKind kind;

 private:
  void lower();
  const Storage* add_storage(const Shape& shape, const Border& border, int born, int dies);
  void extend_life(const Storage* storage, int dies);
  void place_storages();
  void pair_up();
  void choose_turns(const Run& run);
  void run_pair(size_t first, const Run& run, const Scratch& scratch);
  double time_pair(size_t first, bool in_turns, const Run& run);
  void run_step(size_t round, const Step& step, int64_t tasks, int worker, const Run& run, const Scratch& scratch);
  double time_step(Team& team, const Step& step, int64_t tasks, const Step* before, const Run& run);
  double time_choice(Team& team, ConvStep& conv, const ConvChoice& choice, const Step& before, const Run& run);
  ConvChoice fastest(Team& team, ConvStep& conv, const Step& before, const Run& run);
  Scratch scratch_of(float* memory) const;

  const Program& program_;
  const Kernels& kernels_;
  Layout layout_;
  const std::string forced_;
  const bool hasty_;
  struct Live {
    std::unique_ptr<Storage> storage;
    int born, dies;  // steps
  };
  std::vector<Live> storages_;
  std::vector<std::unique_ptr<Storage>> maps_;  // of convolutions whose outputs are pooled before they are stored: nowhere
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<ConvStep*> convolutions_;  // of each step, or null
  std::vector<bool> paired_;  // whether a step and the next one may take turns
  std::map<std::string, ConvChoice> chosen_;
  ptrdiff_t arena_floats_ = 0;
  ScratchSize scratch_size_;  // the largest that a step needs
  Shares shares_;
  Barrier barrier_;
};

}  // namespace splore
