#include "planner.h"

#include <algorithm>
#include <chrono>

#include "tuner.h"

namespace splore {
namespace {

constexpr size_t kMostComposed = 1024;
constexpr int kTimes = 6;  // that a way to cut a batch is timed
constexpr int64_t kComposed = 512;  // images that are put together with care; those before them go the fastest way

// The turn to plan, which one engine of the process has at a time, for it measures.
class Turn {
 public:
  Turn() {
    std::unique_lock<std::mutex> lock(shared().mutex);
    shared().changed.wait(lock, [] { return !shared().planning; });
    shared().planning = true;
  }
  ~Turn() {
    std::lock_guard<std::mutex> lock(shared().mutex);
    shared().planning = false;
    shared().changed.notify_all();
  }
};

// Some slices as one item: as many images as the threads take at once.
struct Item {
  const std::shared_ptr<const Slice>* slice;
  int64_t images;
  double cost;
};

}  // namespace

Planner::Planner(const Program& program, const Kernels& kernels, const PlanOptions& options)
    : options(options), program_(program), kernels_(kernels) {}

void Planner::plan(int64_t batch) {
  const Turn turn;
  Slices slices;
  {
    std::lock_guard<std::mutex> lock(shared().mutex);
    if (is_planned(batch)) return;
    for (const auto& [kind, slice] : slices_)
      if (is_untimed() || slice->milliseconds() > 0) slices.emplace(kind, slice);
    if (!slices.empty() && packed_bytes_ >= options.most_bytes) return;
  }
  Team team(options.threads, Team::kAll);
  Team* const timing = is_untimed() ? nullptr : &team;
  const int64_t full = full_images(batch), rest = batch - full;
  std::vector<Cut> best;
  if (rest) {
    const std::vector<std::vector<Cut>> list = ways(rest);
    double least = 1e30;
    for (const std::vector<Cut>& cuts : list) {
      if (list.size() == 1 || !timing) break;
      const double took = time(tuned(cuts, slices, timing), rest, team);
      if (took < least) least = took, best = cuts;
    }
    if (best.empty()) best = list.front();
  }
  if (full) best.insert(best.begin(), {{false, kernels_.lanes, 1}, full});
  Plan plan = tuned(best, slices, timing);
  slices.clear();
  std::lock_guard<std::mutex> lock(shared().mutex);
  if (timing) drop_untimed();
  take(plan);
  plans_[batch] = std::make_shared<const Plan>(std::move(plan));
}

// Under the lock: the slices of a new plan join those that there are.
void Planner::take(const Plan& plan) {
  for (const Part& part : plan) slices_[part.slice->kind] = part.slice;
  most_workspace_ = std::max(most_workspace_, workspace(plan, options.threads));
  composed_.clear();
  packed_bytes_ = packings_.bytes();
}

std::string Planner::save() const {
  std::lock_guard<std::mutex> lock(shared().mutex);
  return plans_.empty() || options.deterministic ? "" : to_text(plans_, kernels_, options.threads);
}

void Planner::load(const std::string& text) {
  if (options.deterministic) throw Error("a deterministic engine takes no timed plans");
  Plans plans = plans_from(text, program_, kernels_, options.threads, packings_, options.most_bytes);
  std::lock_guard<std::mutex> lock(shared().mutex);
  drop_untimed();
  for (auto& [batch, plan] : plans) {
    take(*plan);
    plans_[batch] = std::move(plan);
  }
}

void Planner::drop_untimed() {
  for (auto it = slices_.begin(); it != slices_.end();) it = it->second->milliseconds() > 0 ? std::next(it) : slices_.erase(it);
}

void Planner::force(const std::string& kernel) {
  const Turn turn;
  std::lock_guard<std::mutex> lock(shared().mutex);
  forced_ = kernel;
  slices_.clear(), plans_.clear(), composed_.clear();
  packed_bytes_ = most_workspace_ = 0;
}

// Images that go through full lanes, as many to each thread by itself.
int64_t Planner::full_images(int64_t batch) const {
  return options.deterministic ? 0 : batch / kernels_.lanes / options.threads * options.threads * kernels_.lanes;
}

// The ways worth timing to cut what is left: as slices of each thread's own, the last of them with lanes to spare, or as full
// lanes that all threads share and a rest in either layout.
std::vector<std::vector<Planner::Cut>> Planner::ways(int64_t images) const {
  if (options.deterministic) return {{{{true, 1, 1}, images}}};
  const int lanes = kernels_.lanes;
  std::vector<std::vector<Cut>> list;
  if (images > lanes) list.push_back({{{false, lanes, 1}, images}});
  for (const bool planar : {false, true}) {
    const int64_t last = images % lanes, interleaved = planar ? images - last : images;
    // Few images don't fill the lanes, and many nearly do.
    if (planar ? last == 0 || last >= lanes * 3 / 4 : last && last <= lanes / 4) continue;
    std::vector<Cut> cuts;
    if (interleaved) cuts.push_back({{false, lanes, options.threads}, interleaved});
    if (planar) cuts.push_back({{true, int(last), options.threads}, last});
    list.push_back(std::move(cuts));
  }
  return list;
}

// Without a team, untimed.
Plan Planner::tuned(const std::vector<Cut>& cuts, Slices& slices, Team* team) {
  Plan plan;
  for (const Cut& cut : cuts) {
    std::shared_ptr<const Slice>& known = slices[cut.kind];
    if (!known) {
      auto made = std::make_shared<Slice>(program_, kernels_, cut.kind);
      Tuner(*made, program_, team, packings_, forced_).tune();
      known = std::move(made);
    }
    if (!plan.empty() && plan.back().slice == known)
      plan.back().images += cut.images;
    else
      plan.push_back({known, cut.images});
  }
  return plan;
}

// Milliseconds of so many images: the least of some runs.
double Planner::time(const Plan& plan, int64_t images, Team& team) const {
  const std::vector<float> x(size_t(images * program_.shapes.front().elements()));
  std::vector<float> y(size_t(images * program_.shapes.back().elements()));
  Context context;
  double best = 1e30;
  for (int i = 0; i < kTimes; i++) {
    const auto start = std::chrono::steady_clock::now();
    run(plan, program_, x.data(), y.data(), team, context);
    best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

std::shared_ptr<const Plan> Planner::known(int64_t batch) const {
  for (const auto& plans : {&plans_, &composed_})
    if (const auto found = plans->find(batch); found != plans->end()) return found->second;
  return nullptr;
}

bool Planner::is_untimed() const { return options.deterministic || fast_plan(); }

bool Planner::is_timed() const {
  return std::any_of(slices_.begin(), slices_.end(), [](const auto& known) { return known.second->milliseconds() > 0; });
}

std::shared_ptr<const Plan> Planner::find(int64_t batch) {
  std::vector<Cut> cuts;
  Slices slices;
  {
    std::lock_guard<std::mutex> lock(shared().mutex);
    if (auto plan = known(batch)) return plan;
    cuts = untimed_cuts(batch);
    if (cuts.empty()) return composed(batch, compose(batch));
    slices = slices_;
  }
  Plan plan = tuned(cuts, slices, nullptr);
  slices.clear();
  std::lock_guard<std::mutex> lock(shared().mutex);
  for (Part& part : plan) part.slice = slices_.emplace(part.slice->kind, part.slice).first->second;  // another caller's, if first
  most_workspace_ = std::max(most_workspace_, workspace(plan, options.threads));
  packed_bytes_ = packings_.bytes();
  return composed(batch, is_timed() ? compose(batch) : std::move(plan));
}

// The slices that a batch without a plan needs before it can run well: where nothing was timed, those of its own; and full
// lanes, where it fills them. None where what there is will do, or plans hold as much as they may.
std::vector<Planner::Cut> Planner::untimed_cuts(int64_t batch) const {
  if (!slices_.empty() && packed_bytes_ >= options.most_bytes) return {};
  const SliceKind lanes{false, kernels_.lanes, 1};
  if (is_timed()) {
    const bool planar = std::all_of(slices_.begin(), slices_.end(), [](const auto& known) { return known.first.planar; });
    return planar && batch >= kernels_.lanes ? std::vector<Cut>{{lanes, batch}} : std::vector<Cut>{};
  }
  const int64_t full = full_images(batch);
  std::vector<Cut> cuts = full < batch ? ways(batch - full).front() : std::vector<Cut>{};
  if (full) cuts.insert(cuts.begin(), {lanes, full});
  return cuts;
}

std::shared_ptr<const Plan> Planner::composed(int64_t batch, Plan plan) {
  if (composed_.size() >= kMostComposed) composed_.clear();
  return composed_[batch] = std::make_shared<const Plan>(std::move(plan));
}

// The cheapest of all ways to put a batch together of the slices that there are: cost[n] of n images is the least of an item's
// and that of what it leaves. An item may have room for more images than are left. A planar image counts as half as much again
// as a lane, where a slice was not timed.
Plan Planner::compose(int64_t batch) const {
  const auto lanes = [](const SliceKind& kind) { return double(kind.images) * (kind.planar ? 1.5 : 1.0); };
  double lane = 0;  // milliseconds
  for (const auto& [kind, slice] : slices_) lane = std::max(lane, slice->milliseconds() / lanes(kind));
  if (lane == 0) lane = 1;
  std::vector<Item> items;
  for (const auto& [kind, slice] : slices_) {
    const double cost = slice->milliseconds() > 0 ? slice->milliseconds() : lanes(kind) * lane;
    items.push_back({&slice, kind.images, cost});
    if (kind.team == 1) items.push_back({&slice, int64_t(kind.images) * options.threads, cost * 1.01});
  }
  const auto cheaper = [](const Item& a, const Item& b) { return a.cost * double(b.images) < b.cost * double(a.images); };
  const Item& bulk = *std::min_element(items.begin(), items.end(), cheaper);
  std::map<const std::shared_ptr<const Slice>*, int64_t> room;  // images, by slice
  int64_t left = batch;
  if (left > kComposed) {
    const int64_t taken = (left - kComposed) / bulk.images * bulk.images;
    room[bulk.slice] += taken, left -= taken;
  }
  std::vector<double> cost(size_t(left) + 1, 0.0);
  std::vector<const Item*> last(size_t(left) + 1, nullptr);
  for (int64_t n = 1; n <= left; n++)
    for (const Item& item : items) {
      const double all = item.cost + cost[size_t(std::max<int64_t>(0, n - item.images))];
      if (!last[size_t(n)] || all < cost[size_t(n)]) cost[size_t(n)] = all, last[size_t(n)] = &item;
    }
  for (int64_t n = left; n > 0; n -= last[size_t(n)]->images) room[last[size_t(n)]->slice] += last[size_t(n)]->images;
  Plan plan;
  for (const auto& [kind, slice] : slices_) {
    const auto found = room.find(&slice);
    if (found == room.end() || !batch) continue;
    const int64_t images = std::min(batch, found->second);
    plan.push_back({slice, images});
    batch -= images;
  }
  return plan;
}

}  // namespace splore
