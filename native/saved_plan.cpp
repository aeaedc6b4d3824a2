// {"machine", "isa", "threads", "version", "slices": [..], "plans": [{"batch", "parts": [[slice, images], ..]}]}, a slice being
// {"planar", "images", "team", "nanoseconds", "steps": [..]}, and a step [nanoseconds], or of a convolution [nanoseconds, kernel,
// fused]. A kernel is told by its description, and only ever taken from the candidates of its step: whatever a text says,
// nothing runs that the tuner could not have chosen.
#include "saved_plan.h"

#include <algorithm>
#include <cmath>

#include "json.h"
#include "threads.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#else
#include <fstream>
#endif

namespace splore {
namespace {

constexpr size_t kMostPlans = 256;
constexpr size_t kMostReplanned = 32;  // by timing
constexpr int64_t kMostImages = int64_t(1) << 31;
constexpr int64_t kMostNanoseconds = int64_t(1) << 53;

std::string processor() {
#if defined(__x86_64__)
  unsigned words[13] = {};
  for (unsigned i = 0; i < 3; i++)
    if (!__get_cpuid(0x80000002 + i, words + 4 * i, words + 4 * i + 1, words + 4 * i + 2, words + 4 * i + 3)) return "x86-64";
  return reinterpret_cast<const char*>(words);
#elif defined(__APPLE__)
  char name[256] = {};
  size_t size = sizeof name - 1;
  return sysctlbyname("machdep.cpu.brand_string", name, &size, nullptr, 0) ? "Apple" : name;
#else
  std::ifstream info("/proc/cpuinfo");
  std::string all, line;
  while (std::getline(info, line) && !line.empty())  // of the first core
    if (line.rfind("CPU ", 0) == 0) all += line.substr(line.find(':') + 1);
  return all.empty() ? "unknown" : all;
#endif
}

// The kind of this machine.
const std::string& machine() {
  static const std::string name = [] {
    std::string found = processor();
    for (char& c : found)
      if (c < ' ' || c > '~' || c == '"' || c == '\\') c = ' ';
    return found;
  }();
  return name;
}

std::string to_text(const Slice& slice) {
  const auto nanoseconds = [](double milliseconds) { return std::to_string(std::llround(milliseconds * 1e6)); };
  std::string text = "{\"planar\":" + std::string(slice.kind.planar ? "true" : "false") +
                     ",\"images\":" + std::to_string(slice.kind.images) + ",\"team\":" + std::to_string(slice.kind.team) +
                     ",\"nanoseconds\":" + nanoseconds(slice.milliseconds()) + ",\"steps\":[";
  for (const SliceStep& entry : slice.steps()) {
    text += (&entry == &slice.steps().front() ? "[" : ",[") + nanoseconds(entry.step->milliseconds);
    if (entry.tuned) text += ",\"" + entry.tuned->describe(entry.tuned->choice()) + "\"," + (entry.fused ? "true" : "false");
    text += "]";
  }
  return text + "]}";
}

double milliseconds(const Json& nanoseconds) { return double(nanoseconds.integer(0, kMostNanoseconds)) * 1e-6; }

ConvChoice find_choice(const TunedStep& conv, const std::string& kernel) {
  for (const ConvChoice& choice : conv.candidates())
    if (conv.describe(choice) == kernel) return choice;
  throw Error("operation " + std::to_string(conv.op) + " has no kernel '" + kernel.substr(0, 80) + "' here");
}

std::shared_ptr<const Slice> slice_from(const Json& saved, const Program& program, const Kernels& kernels, int threads,
                                        Packings& packings) {
  SliceKind kind{saved.at("planar").boolean(), 0, int(saved.at("team").integer(1, threads))};
  kind.images = int(saved.at("images").integer(kind.planar ? 1 : kernels.lanes, kernels.lanes));
  if (kind.team != 1 && kind.team != threads) throw Error("a slice is for one thread or for all");
  auto slice = std::make_shared<Slice>(program, kernels, kind);
  const std::vector<Json>& list = saved.at("steps").list();
  if (list.size() != slice->steps().size()) throw Error("a slice has another number of steps here");
  for (size_t i = 0; i < list.size(); i++) {
    const SliceStep& step = slice->steps()[i];
    const std::vector<Json>& entry = list[i].list();
    if (entry.size() != (step.tuned ? 3 : 1)) throw Error("a step is incomplete");
    ConvChoice choice;
    if (step.tuned) choice = find_choice(*step.tuned, entry[1].text());
    slice->settle(i, &choice, packings);
    slice->set_milliseconds(i, milliseconds(entry[0]));
    if (!step.tuned || !entry[2].boolean()) continue;
    if (!step.may_fuse) throw Error("two steps are fused that can't be here");
    slice->fuse(i);
  }
  slice->set_milliseconds(milliseconds(saved.at("nanoseconds")));
  return slice;
}

std::shared_ptr<const Plan> plan_from(const Json& saved, const std::vector<std::shared_ptr<const Slice>>& slices) {
  auto plan = std::make_shared<Plan>();
  int64_t left = saved.at("batch").integer(1, kMostImages);
  for (const Json& part : saved.at("parts").list()) {
    if (part.list().size() != 2) throw Error("a part of a plan is a slice and a number of images");
    const int64_t slice = part.list()[0].integer(0, int64_t(slices.size()) - 1), images = part.list()[1].integer(1, left);
    plan->push_back({slices[size_t(slice)], images});
    left -= images;
  }
  if (left) throw Error("the parts of a plan are no whole batch");
  return plan;
}

void expect_same(const char* what, const std::string& saved, const std::string& here) {
  if (saved != here) throw Error(std::string("they were made for ") + what + " " + saved.substr(0, 80) + ", this is " + here);
}

}  // namespace

std::string to_text(const Plans& plans, const Kernels& kernels, int threads) {
  std::map<const Slice*, size_t> places;
  std::string slices, list;
  size_t left = kMostPlans;
  for (const auto& [batch, plan] : plans) {
    if (!left--) break;
    std::string parts;
    for (const Part& part : *plan) {
      const auto [place, fresh] = places.emplace(part.slice.get(), places.size());
      if (fresh) slices += (slices.empty() ? "" : ",\n") + to_text(*part.slice);
      parts += (parts.empty() ? "[" : ",[") + std::to_string(place->second) + "," + std::to_string(part.images) + "]";
    }
    list += (list.empty() ? "" : ",\n") + ("{\"batch\":" + std::to_string(batch)) + ",\"parts\":[" + parts + "]}";
  }
  return "{\"machine\":\"" + machine() + "\",\"isa\":\"" + kernels.name + "\",\"threads\":" + std::to_string(threads) +
         ",\"version\":\"" SPLORE_VERSION "\",\n\"slices\":[" + slices + "],\n\"plans\":[" + list + "]}";
}

Plans plans_from(const std::string& text, const Program& program, const Kernels& kernels, int threads, Packings& packings,
                 int64_t most_bytes) {
  const Json saved = Json::parse(text);
  expect_same("the processor", saved.at("machine").text(), machine());
  expect_same("the instruction set", saved.at("isa").text(), kernels.name);
  expect_same("a number of threads of", std::to_string(saved.at("threads").integer()), std::to_string(threads));
  expect_same("the version", saved.at("version").text(), SPLORE_VERSION);
  const std::vector<Json>&list = saved.at("slices").list(), &batches = saved.at("plans").list();
  if (list.size() > kMostPlans || batches.size() > kMostPlans) throw Error("there are too many of them");
  std::vector<std::shared_ptr<const Slice>> slices;
  for (const Json& slice : list) {
    {
      std::lock_guard<std::mutex> lock(shared().mutex);
      if (!slices.empty() && packings.bytes() >= most_bytes) throw Error("they hold more packed weights than they may");
    }
    slices.push_back(slice_from(slice, program, kernels, threads, packings));
  }
  Plans plans;
  for (const Json& plan : batches) plans[plan.at("batch").integer()] = plan_from(plan, slices);
  return plans;
}

std::vector<int64_t> batches_of(const std::string& text) {
  std::vector<int64_t> batches;
  try {
    const Json saved = Json::parse(text);
    for (const Json& plan : saved.at("plans").list())
      if (batches.size() < kMostReplanned) batches.push_back(plan.at("batch").integer(1, kMostImages));
  } catch (const Error&) {
    batches.clear();
  }
  return batches;
}

}  // namespace splore
