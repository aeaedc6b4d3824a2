// The pattern kernel: some output channels at once. The columns of S are sorted by which of these channels have an entry there,
// so that a vector of the input, once loaded, serves all of them. A joins as columns of the pattern of all, over t.
#pragma once

#include "kernel_sparse.h"

namespace splore {
namespace {

// More rows share more loads, but have registers for a smaller tile.
constexpr int kPatternRows = SPLORE_REGISTERS >= 32 ? 4 : 2;
constexpr int kPatternVectors = SPLORE_REGISTERS >= 32 ? 7 : 6;
constexpr int kPatterns = 1 << kPatternRows;
constexpr int kWordLine = 64 / sizeof(PatternItem);

// Columns of pattern P, whose bit g stands for row g.
template <int P, int T, class Source>
SPLORE_INLINE const PatternItem* pattern_columns(const PatternItem* word, int columns, const Source& x, bool fetch,
                                                 Vec (&sum)[kPatternRows][T]) {
  constexpr int rows = __builtin_popcount(P);
  if (fetch)
    for (const PatternItem* line = word; line < word + columns * (1 + rows); line += kWordLine)
      __builtin_prefetch(line + 32 * kWordLine, 0, 2);
  for (; columns > 0; columns--) {
    const ptrdiff_t offset = word++->index;
    Vec factor[kPatternRows];
#pragma GCC unroll 4
    for (int g = 0; g < kPatternRows; g++)
      if (P >> g & 1) factor[g] = broadcast(word++->value);
#pragma GCC unroll 16
    for (int v = 0; v < T; v++) {
      const Vec value = rows > 1 ? held(x.at(v, offset)) : x.at(v, offset);
#pragma GCC unroll 4
      for (int g = 0; g < kPatternRows; g++)
        if (P >> g & 1) sum[g][v] += value * factor[g];
    }
  }
  return word;
}

template <int P, int T, class Source>
SPLORE_INLINE const PatternItem* patterns_from(const PatternItem* word, const PatternItem* columns, const Source& x, bool fetch,
                                               Vec (&sum)[kPatternRows][T]) {
  if constexpr (P < kPatterns) {
    word = pattern_columns<P>(word, columns[P].index, x, fetch, sum);
    word = patterns_from<P + 1>(word, columns, x, fetch, sum);
  }
  return word;
}

template <int R, int C, int STEP>
SPLORE_INLINE void pattern_rows(const PatternBlock& block, const Corner<R, C, STEP>& x, const Store<R, C>& sink, int rank,
                                const Corner<R, C, 1>& t, const Ahead& ahead, ptrdiff_t pitch) {
  const PatternItem* word = block.words;
  int64_t fetched = 0;
  for (int i = 0; i < block.group_count; i++) {
    for (; fetched * block.group_count < int64_t(i + 1) * ahead.channels; fetched++)
      prefetch<R, C, STEP>(ahead, pitch, int(fetched));
    const int channel = word->index;
    for (int g = 0; g < kPatternRows; g++) sink.prefetch(channel + kRowsAhead + g);
    Vec sum[kPatternRows][R * C];
#pragma GCC unroll 4
    for (int g = 0; g < kPatternRows; g++) sink.template start<0>(channel + g, sum[g]);
    word = patterns_from<1>(word + kPatterns, word, x, sink.args.fetch_entries, sum);
    word = pattern_columns<kPatterns - 1>(word, rank, t, false, sum);
#pragma GCC unroll 4
    for (int g = 0; g < kPatternRows; g++) sink.template finish<0>(channel + g, sum[g]);
  }
}

}  // namespace
}  // namespace splore
