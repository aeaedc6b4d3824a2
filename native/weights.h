// The weight of a convolution in the two forms that the kernels start from, and packed for one choice of kernel.
#pragma once

#include <sys/mman.h>

#include <memory>
#include <new>
#include <vector>

#include "kernels.h"
#include "packings.h"
#include "program.h"

namespace splore {

// To a cache line. What is large comes from the system and goes back there, for plans try much that they don't keep; and in
// large pages, for a kernel reads one place of many channels, each on a page of its own.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  static constexpr size_t kLarge = size_t(1) << 19;
  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T);
    if (bytes < kLarge) return static_cast<T*>(::operator new(bytes, std::align_val_t(64)));
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    (void)madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t n) {
    if (n * sizeof(T) < kLarge) return ::operator delete(p, std::align_val_t(64));
    munmap(p, n * sizeof(T));
  }
  template <class U>
  bool operator==(const Aligned<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const Aligned<U>&) const {
    return false;
  }
};
template <class T>
using AlignedVector = std::vector<T, Aligned<T>>;

// Everything but the low-rank part, in CSR, columns over all input channels (a grouped convolution is block diagonal).
// It looks at the program's own arrays where it can.
class SparseMatrix {
 public:
  SparseMatrix(const Op& op, int64_t channels);
  int64_t nonzeros() const { return nonzeros_; }
  const float* values;
  const uint32_t* columns;
  const uint32_t* rows;

 private:
  std::vector<float> own_values_;
  std::vector<uint32_t> own_columns_, own_rows_;
  int64_t nonzeros_ = 0;
};

// The entries of that matrix, or a few more, without making it.
int64_t count_nonzeros(const Op& op);

// All parts added up: (n, k), one group only.
AlignedVector<float> fold(const Op& op);

// What a kernel choice asks of the packing.
struct PackRequest {
  int64_t channels, taps;   // k = channels * taps
  int64_t block_channels;   // input channels of a block
  int parts;                // about equal in work
  int tile_floats;          // of one gathered column: vectors of the tile times lanes
  bool gathered;            // offsets count gathered columns of the block; else `offsets` gives them
  bool dense;               // all parts folded
  bool dense_finish;        // A by the dense kernel
  int winograd_rows;        // rows of B transformed together, 0 for B as it is
  int pattern_rows;         // output channels of a group of the pattern kernel, 0 for the others
  bool inside;              // entries sorted by tap
  const std::vector<int32_t>* offsets;  // of each of the k columns

  // Whether the packing is the same, given the same offsets.
  bool operator==(const PackRequest& o) const {
    return block_channels == o.block_channels && parts == o.parts && tile_floats == o.tile_floats && gathered == o.gathered &&
           dense == o.dense && dense_finish == o.dense_finish && winograd_rows == o.winograd_rows &&
           pattern_rows == o.pattern_rows && inside == o.inside;
  }
};

struct PackedConv : Packing {
  std::vector<ConvBlock> blocks;
  std::vector<ConvPart> parts;
  std::vector<SparseBlock> sparse;  // [part][block]
  AlignedVector<int32_t> offsets, t_offsets;
  AlignedVector<float> b, winograd, dense, a_packed;
  AlignedVector<SparseRow> rows;
  AlignedVector<Entry> entries;
  std::vector<int32_t> tap_counts;
  std::vector<PatternBlock> patterns;  // [part][block]
  AlignedVector<PatternItem> words;
  int64_t most_columns = 0;  // of a block
  PackRequest packed_as{};

  // `matrix` for the sparse stream, `folded` for the dense kernel; the other may be null.
  PackedConv(const Op& op, const SparseMatrix* matrix, const float* folded, const PackRequest& request);
  PackedConv(const PackedConv&) = delete;
  int64_t bytes() const override;
  bool same_as(const Packing& other) const override;

 private:
  void pack_blocks(const Op& op, const float* folded, const PackRequest& request);
  void pack_parts(const Op& op, const SparseMatrix* matrix, const PackRequest& request);
  void pack_sparse(const SparseMatrix& matrix, const PackRequest& request, int64_t n);
  void pack_patterns(const SparseMatrix& matrix, const PackRequest& request, const Weight& w);
};

}  // namespace splore
