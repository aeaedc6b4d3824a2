// The C functions of splore.h: nothing may throw beyond them.
#include "splore.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>

#include "engine.h"
#include "program_file.h"

struct splore_engine {
  std::unique_ptr<const splore::ProgramFile> file;  // that the engine reads its arrays from, or null
  splore::Engine engine;
};

namespace {

using splore::Error;

template <class F>
int guarded(char* error, size_t size, F f) {
  const auto say = [&](const char* what) {
    if (!error || !size) return;
    std::strncpy(error, what, size - 1);
    error[size - 1] = 0;
  };
  try {
    f();
    return 0;
  } catch (const std::bad_alloc&) {
    say("not enough memory");
  } catch (const std::exception& e) {
    say(e.what());
  } catch (...) {
    say("unknown error");
  }
  return 1;
}

template <class T>
T& given(T* pointer, const char* what) {
  if (!pointer) throw Error(std::string(what) + " is missing: found a null pointer");
  return *pointer;
}

splore_options chosen(const splore_options* options) {
  splore_options found{};
  found.threads = 1;
  if (options) {
    if (options->size < int64_t(sizeof(int64_t))) throw Error("the options don't say their size");
    std::memcpy(&found, options, size_t(std::min<int64_t>(options->size, sizeof found)));
  }
  if (found.threads < 1 || found.threads > 1024) throw Error("an engine has 1 to 1024 threads");
  return found;
}

splore::Engine make(const splore_program& program, const splore_options& options) {
  splore::PlanOptions plans;
  plans.threads = int(options.threads), plans.deterministic = options.deterministic != 0, plans.most_bytes = options.plan_bytes;
  return {program, options.isa ? options.isa : "", plans};
}

splore_engine* open(splore::Container container, const splore_options& options) {
  auto file = std::make_unique<const splore::ProgramFile>(std::move(container), options.image_bytes);
  const splore_program& program = file->program();
  const std::string* plans = file->plans();
  std::unique_ptr<splore_engine> made(new splore_engine{std::move(file), make(program, options)});
  if (plans) made->engine.take_plans(*plans, options.replan != 0);
  return made.release();
}

// Writes what fits of a text, and says what all of it takes.
int64_t write(const std::string& found, char* text, int64_t size) {
  const int64_t needed = int64_t(found.size()) + 1;
  if (text && size > 0) {
    const int64_t written = std::min(needed, size) - 1;
    std::memcpy(text, found.data(), size_t(written));
    text[written] = 0;
  }
  return needed;
}

}  // namespace

extern "C" {

int splore_abi(void) { return SPLORE_ABI; }

const char* splore_version(void) { return SPLORE_VERSION; }

int splore_create(const splore_program* program, const splore_options* options, splore_engine** engine, char* error,
                  size_t error_size) {
  return guarded(error, error_size, [&] {
    given(engine, "the place for the engine") = nullptr;
    *engine = new splore_engine{nullptr, make(given(program, "the program"), chosen(options))};
  });
}

int splore_open(const char* path, const splore_options* options, splore_engine** engine, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    given(engine, "the place for the engine") = nullptr;
    given(path, "the path");
    try {
      *engine = open(splore::Container::open(path), chosen(options));
    } catch (const Error& found) {
      throw Error(std::string(path) + ": " + found.what());
    }
  });
}

int splore_open_memory(const void* data, size_t size, const splore_options* options, splore_engine** engine, char* error,
                       size_t error_size) {
  return guarded(error, error_size, [&] {
    given(engine, "the place for the engine") = nullptr;
    given(static_cast<const char*>(data), "the file");
    *engine = open(splore::Container::read(data, size), chosen(options));
  });
}

int splore_force(splore_engine* engine, const char* kernel, char* error, size_t error_size) {
  return guarded(error, error_size, [&] { given(engine, "the engine").engine.force(kernel ? kernel : ""); });
}

int splore_plan(splore_engine* engine, int64_t batch, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    if (batch < 1) throw Error("a plan is for a batch of at least 1");
    given(engine, "the engine").engine.plan(batch);
  });
}

int64_t splore_save_plans(splore_engine* engine, char* text, int64_t size) {
  std::string plans;
  guarded(nullptr, 0, [&] { plans = given(engine, "the engine").engine.save_plans(); });
  return write(plans, text, size);
}

int splore_load_plans(splore_engine* engine, const char* text, char* error, size_t error_size) {
  return guarded(error, error_size, [&] { given(engine, "the engine").engine.load_plans(&given(text, "the text")); });
}

int splore_run(splore_engine* engine, const float* in, float* out, int64_t batch, char* error, size_t error_size) {
  return guarded(error, error_size, [&] {
    splore::Engine& runs = given(engine, "the engine").engine;
    if (batch < 0) throw Error("a batch can't be negative");
    if (batch < 1) return;
    given(in, "the input"), given(out, "the place for the output");
    runs.run(in, out, batch);
  });
}

void splore_input(const splore_engine* engine, int64_t shape[3]) {
  if (!shape) return;
  const splore::Shape s = engine ? engine->engine.input() : splore::Shape{};
  shape[0] = s.c, shape[1] = s.h, shape[2] = s.w;
}

void splore_output(const splore_engine* engine, int64_t shape[3]) {
  if (!shape) return;
  const splore::Shape s = engine ? engine->engine.output() : splore::Shape{};
  shape[0] = s.c, shape[1] = s.h, shape[2] = s.w;
}

const char* splore_isa(const splore_engine* engine) { return engine ? engine->engine.kernels().name : ""; }

int64_t splore_workspace(const splore_engine* engine) { return engine ? engine->engine.workspace_bytes() : 0; }

int64_t splore_packed(const splore_engine* engine) { return engine ? engine->engine.packed_bytes() : 0; }

double splore_peak(const splore_engine* engine) { return engine ? engine->engine.peak() : 0; }

double splore_int_peak(const splore_engine* engine) { return engine->engine.int_peak(); }

int64_t splore_table(splore_engine* engine, char* text, int64_t size) {
  std::string table;
  if (guarded(nullptr, 0, [&] { table = given(engine, "the engine").engine.table(); })) table = "{}";
  return write(table, text, size);
}

void splore_destroy(splore_engine* engine) { delete engine; }

}  // extern "C"
