// The C functions of splore.h: nothing may throw beyond them.
#include "splore.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "engine.h"

struct splore_engine {
  splore::Engine engine;
};

namespace {

template <class F>
int guarded(char* error, size_t size, F f) {
  const char* what;
  try {
    f();
    return 0;
  } catch (const std::bad_alloc&) {
    what = "not enough memory";
  } catch (const std::exception& e) {
    what = e.what();
    if (error && size) {
      std::strncpy(error, what, size - 1);
      error[size - 1] = 0;
    }
    return 1;
  } catch (...) {
    what = "unknown error";
  }
  if (error && size) {
    std::strncpy(error, what, size - 1);
    error[size - 1] = 0;
  }
  return 1;
}

}  // namespace

extern "C" {

int splore_abi(void) { return SPLORE_ABI; }

int splore_create(const splore_program* program, const splore_options* options, splore_engine** engine, char* error,
                  size_t error_size) {
  return guarded(error, error_size, [&] {
    if (!program || !engine) throw splore::Error("a program and a place for the engine are needed");
    *engine = nullptr;
    splore_options chosen{};
    chosen.threads = 1;
    if (options) {
      if (options->size < int64_t(sizeof(int64_t))) throw splore::Error("the options don't say their size");
      std::memcpy(&chosen, options, size_t(std::min<int64_t>(options->size, sizeof chosen)));
    }
    if (chosen.threads < 1 || chosen.threads > 1024) throw splore::Error("an engine has 1 to 1024 threads");
    splore::PlanOptions plans;
    plans.threads = int(chosen.threads), plans.deterministic = chosen.deterministic != 0, plans.most_bytes = chosen.plan_bytes;
    *engine = new splore_engine{{*program, chosen.isa ? chosen.isa : "", plans}};
  });
}

int splore_force(splore_engine* engine, const char* kernel, char* error, size_t error_size) {
  return guarded(error, error_size, [&] { engine->engine.force(kernel ? kernel : ""); });
}

int splore_plan(splore_engine* engine, int64_t batch, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    if (batch < 1) throw splore::Error("a plan is for a batch of at least 1");
    engine->engine.plan(batch);
  });
}

int splore_run(splore_engine* engine, const float* in, float* out, int64_t batch, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    if (batch < 0) throw splore::Error("a batch can't be negative");
    engine->engine.run(in, out, batch);
  });
}

void splore_output(const splore_engine* engine, int64_t shape[3]) {
  const splore::Shape& s = engine->engine.output();
  shape[0] = s.c, shape[1] = s.h, shape[2] = s.w;
}

const char* splore_isa(const splore_engine* engine) { return engine->engine.kernels().name; }

int64_t splore_workspace(const splore_engine* engine) { return const_cast<splore_engine*>(engine)->engine.workspace_bytes(); }

int64_t splore_packed(const splore_engine* engine) { return const_cast<splore_engine*>(engine)->engine.packed_bytes(); }

double splore_peak(const splore_engine* engine) { return engine->engine.peak(); }

int64_t splore_table(splore_engine* engine, char* text, int64_t size) {
  std::string table;
  if (guarded(nullptr, 0, [&] { table = engine->engine.table(); })) table = "[]";
  const int64_t needed = int64_t(table.size()) + 1;
  if (text && size > 0) {
    const int64_t written = std::min(needed, size) - 1;
    std::memcpy(text, table.data(), size_t(written));
    text[written] = 0;
  }
  return needed;
}

void splore_destroy(splore_engine* engine) { delete engine; }

}  // extern "C"
