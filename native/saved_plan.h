// Timed plans as a text, for engines of the same program on machines of the same kind.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "execution.h"
#include "packings.h"

namespace splore {

using Plans = std::map<int64_t, std::shared_ptr<const Plan>>;  // by batch

std::string to_text(const Plans& plans, const Kernels& kernels, int threads);

// Throws Error where the text comes from a machine of another kind, another library or number of threads, or does not fit the
// program. Packs at most so many bytes of weights.
Plans plans_from(const std::string& text, const Program& program, const Kernels& kernels, int threads, Packings& packings,
                 int64_t most_bytes);

// The batch sizes that a text has plans for, whatever the machine; none where it is no such text.
std::vector<int64_t> batches_of(const std::string& text);

}  // namespace splore
