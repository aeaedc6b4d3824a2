#include "weights.h"

#include <algorithm>
#include <numeric>

namespace splore {

SparseMatrix::SparseMatrix(const Op& op, int64_t channels) {
  const Weight& w = op.weight;
  if (!w.dense && w.rows) {
    values = w.values, columns = w.columns, rows = w.rows, nonzeros_ = w.nonzeros;
    return;
  }
  const int64_t out_per_group = w.n / op.groups, columns_per_group = channels / op.groups * op.window.taps();
  own_rows_.push_back(0);
  for (int64_t i = 0; i < w.n; i++) {
    const int64_t shift = i / out_per_group * columns_per_group;
    int64_t next = w.rows ? w.rows[i] : 0;
    const int64_t end = w.rows ? w.rows[i + 1] : 0;
    for (int64_t j = 0; w.dense && j < w.k; j++) {
      float value = w.dense[i * w.k + j];
      if (next < end && w.columns[next] == j) value += w.values[next++];
      if (value == 0.0f) continue;
      own_values_.push_back(value);
      own_columns_.push_back(uint32_t(shift + j));
    }
    if (own_values_.size() > size_t(INT32_MAX)) throw Error("a weight has too many entries");
    own_rows_.push_back(uint32_t(own_values_.size()));
  }
  values = own_values_.data(), columns = own_columns_.data(), rows = own_rows_.data();
  nonzeros_ = int64_t(own_values_.size());
}

int64_t count_nonzeros(const Op& op) {
  const Weight& w = op.weight;
  if (!w.dense) return w.nonzeros;
  const int64_t dense = w.n * w.k - std::count(w.dense, w.dense + w.n * w.k, 0.0f);
  return std::min(dense + w.nonzeros, w.n * w.k);
}

AlignedVector<float> fold(const Op& op) {
  const Weight& w = op.weight;
  AlignedVector<float> full(size_t(w.n * w.k));
  if (w.dense) std::copy(w.dense, w.dense + w.n * w.k, full.begin());
  for (int64_t i = 0; i < w.n; i++) {
    float* row = full.data() + i * w.k;
    for (int64_t j = 0; j < w.rank; j++) {
      const float a = w.a[i * w.rank + j];
      const float* b = w.b + j * w.k;
      for (int64_t k = 0; k < w.k; k++) row[k] += a * b[k];
    }
    if (w.rows)
      for (uint32_t e = w.rows[i]; e < w.rows[i + 1]; e++) row[w.columns[e]] += w.values[e];
  }
  return full;
}

namespace {

int64_t groups_of(int64_t rows) { return (rows + kRowGroup - 1) / kRowGroup; }

// Columns [begin, end) of the rows of a matrix (rows, pitch), as the dense kernel reads them; rows past the last are zero.
void pack_rows(const float* matrix, int64_t rows, int64_t pitch, int64_t begin, int64_t end, float* out) {
  for (int64_t group = 0; group < groups_of(rows); group++)
    for (int64_t k = begin; k < end; k++)
      for (int64_t g = 0; g < kRowGroup; g++) {
        const int64_t row = group * kRowGroup + g;
        *out++ = row < rows ? matrix[row * pitch + k] : 0.0f;
      }
}

// A row of the transform of a 3 x 3 window.
void transform(const float* w, ptrdiff_t step, float* out, ptrdiff_t out_step) {
  const float ends = w[0] + w[2 * step], middle = w[step];
  out[0] = w[0];
  out[out_step] = 0.5f * (ends + middle);
  out[2 * out_step] = 0.5f * (ends - middle);
  out[3 * out_step] = w[2 * step];
}

// `rows` windows of each channel from `begin` on: [4][channels][4][rows].
void pack_winograd(const float* b, int64_t rows, int64_t pitch, int64_t begin, int64_t end, float* out) {
  for (int64_t c = begin; c < end; c++)
    for (int64_t row = 0; row < rows; row++) {
      const float* window = b + row * pitch + c * 9;
      float down[12], all[16];
      for (int j = 0; j < 3; j++) transform(window + j, 3, down + j, 3);
      for (int i = 0; i < 4; i++) transform(down + 3 * i, 1, all + 4 * i, 1);
      for (int64_t i = 0; i < 4; i++)
        for (int64_t j = 0; j < 4; j++) out[((i * (end - begin) + c - begin) * 4 + j) * rows + row] = all[i * 4 + j];
    }
}

}  // namespace

PackedConv::PackedConv(const Op& op, const SparseMatrix* matrix, const float* folded, const PackRequest& request)
    : packed_as(request) {
  packed_as.offsets = nullptr;
  pack_blocks(op, folded, request);
  pack_parts(op, matrix, request);
  // A weight of low rank alone is finished by A, and has nothing to add before.
  const bool sparse_part = !request.dense && (matrix->nonzeros() || !request.dense_finish);
  if (request.pattern_rows)
    pack_patterns(*matrix, request, op.weight);
  else if (sparse_part)
    pack_sparse(*matrix, request, op.weight.n);
}

void PackedConv::pack_blocks(const Op& op, const float* folded, const PackRequest& request) {
  const Weight& w = op.weight;
  const int64_t k = request.channels * request.taps, rank = request.dense ? 0 : w.rank;
  offsets.resize(size_t(k));
  if (request.winograd_rows)
    winograd.resize(size_t(rank * request.channels * 16));
  else
    b.resize(size_t(groups_of(rank) * kRowGroup * k));
  if (request.dense) dense.resize(size_t(groups_of(w.n) * kRowGroup * k));
  for (int64_t c = 0; c < request.channels; c += request.block_channels) {
    const int64_t c_end = std::min(c + request.block_channels, request.channels);
    const int64_t begin = c * request.taps, end = c_end * request.taps;
    for (int64_t j = begin; j < end; j++) {
      const int64_t gathered = (j - begin) * request.tile_floats;
      if (request.gathered && gathered > INT32_MAX) throw Error("a convolution is too large");
      offsets[size_t(j)] = request.gathered ? int32_t(gathered) : (*request.offsets)[size_t(j)];
    }
    ConvBlock block{};
    block.channel_begin = int32_t(c), block.channel_end = int32_t(c_end), block.columns = int32_t(end - begin);
    block.offsets = offsets.data() + begin;
    if (rank && request.winograd_rows) {
      float* to = winograd.data() + rank * c * 16;
      block.winograd = to;
      for (int64_t row = 0; row < rank;) {
        const int64_t rows = std::min<int64_t>(request.winograd_rows, rank - row);
        pack_winograd(w.b + row * w.k, rows, w.k, c, c_end, to);
        row += rows, to += rows * (c_end - c) * 16;
      }
    } else if (rank) {
      float* to = b.data() + groups_of(rank) * kRowGroup * begin;
      pack_rows(w.b, rank, w.k, begin, end, to);
      block.b = to;
    }
    if (request.dense) {
      float* to = dense.data() + groups_of(w.n) * kRowGroup * begin;
      pack_rows(folded, w.n, w.k, begin, end, to);
      block.dense = to;
    }
    most_columns = std::max(most_columns, end - begin);
    blocks.push_back(block);
  }
  if (rank && request.dense_finish) {
    a_packed.resize(size_t(groups_of(w.n) * kRowGroup * rank));
    pack_rows(w.a, w.n, rank, 0, rank, a_packed.data());
    for (int64_t j = 0; j < rank; j++) t_offsets.push_back(int32_t(j * request.tile_floats));
  }
}

// Cuts the output channels into runs of about equal work.
void PackedConv::pack_parts(const Op& op, const SparseMatrix* matrix, const PackRequest& request) {
  const int64_t n = op.weight.n;
  auto work = [&](int64_t row) {
    const int64_t fixed = row * (4 + op.weight.rank);
    return fixed + (request.dense ? row * op.weight.k : int64_t(matrix->rows[row]));
  };
  int64_t begin = 0;
  for (int p = 1; p <= request.parts && begin < n; p++) {
    int64_t end = p == request.parts ? n : begin;
    while (end < n && work(end) < work(n) * p / request.parts) end += kRowGroup;
    end = std::min(end, n);
    if (end == begin) continue;
    parts.push_back({int32_t(begin), int32_t(end), nullptr, nullptr});
    begin = end;
  }
}

void PackedConv::pack_sparse(const SparseMatrix& matrix, const PackRequest& request, int64_t n) {
  // A row's entries of one block follow one another, for columns rise: find where each block begins in each row.
  const size_t block_count = blocks.size();
  std::vector<uint32_t> cut(size_t(n) * (block_count + 1));
  for (int64_t i = 0; i < n; i++) {
    uint32_t at = matrix.rows[i];
    for (size_t block = 0; block < block_count; block++) {
      cut[size_t(i) * (block_count + 1) + block] = at;
      const int64_t end = blocks[block].channel_end * request.taps;
      while (at < matrix.rows[i + 1] && matrix.columns[at] < end) at++;
    }
    cut[size_t(i) * (block_count + 1) + block_count] = at;
  }
  entries.reserve(size_t(matrix.nonzeros()));
  struct Piece {
    size_t row, row_count, entry;
  };
  std::vector<Piece> pieces;
  std::vector<int32_t> order;
  for (const ConvPart& part : parts) {
    for (size_t block = 0; block < block_count; block++) {
      const auto first = [&](int64_t i) { return cut[size_t(i) * (block_count + 1) + block]; };
      const auto count = [&](int64_t i) { return cut[size_t(i) * (block_count + 1) + block + 1] - first(i); };
      order.resize(size_t(part.end - part.begin));
      std::iota(order.begin(), order.end(), part.begin);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return count(a) > count(b); });
      Piece piece{rows.size(), 0, entries.size()};
      const bool needed = block == 0 || block == block_count - 1;  // these start and finish every row
      for (int32_t i : order) {
        if (!count(i) && !needed) break;
        rows.push_back({i, int32_t(count(i))});
        const auto add = [&](uint32_t e) { entries.push_back({matrix.values[e], offsets[matrix.columns[e]]}); };
        const uint32_t end = first(i) + count(i);
        if (!request.inside) {
          for (uint32_t e = first(i); e < end; e++) add(e);
          continue;
        }
        for (int tap = 0; tap < kInsideTaps; tap++) {
          const size_t before = entries.size();
          for (uint32_t e = first(i); e < end; e++)
            if (int(matrix.columns[e] % kInsideTaps) == tap) add(e);
          tap_counts.push_back(int32_t(entries.size() - before));
        }
      }
      piece.row_count = rows.size() - piece.row;
      pieces.push_back(piece);
    }
  }
  for (const Piece& piece : pieces)
    sparse.push_back({rows.data() + piece.row, entries.data() + piece.entry,
                      request.inside ? tap_counts.data() + piece.row * kInsideTaps : nullptr, int32_t(piece.row_count)});
  for (size_t p = 0; p < parts.size(); p++) parts[p].sparse = sparse.data() + p * block_count;
}

// Group by group of rows: the columns that they have in a block, by which of the rows have them.
void PackedConv::pack_patterns(const SparseMatrix& matrix, const PackRequest& request, const Weight& w) {
  const int rows = request.pattern_rows, pattern_count = 1 << rows;
  const auto add_value = [&](float x) {
    words.emplace_back();
    words.back().value = x;
  };
  std::vector<uint8_t> pattern(offsets.size());  // of each column: a bit for each row
  std::vector<float> values(offsets.size() * kRowGroup);
  std::vector<uint32_t> of_pattern[1 << kRowGroup];
  std::vector<uint32_t> next(matrix.rows, matrix.rows + w.n);  // entry of each row
  std::vector<size_t> begins;
  words.reserve(size_t(matrix.nonzeros()) * 2);
  for (const ConvPart& part : parts) {
    for (const ConvBlock& block : blocks) {
      const uint32_t begin = uint32_t(block.channel_begin * request.taps), end = uint32_t(block.channel_end * request.taps);
      begins.push_back(words.size());
      for (int64_t row = part.begin; row < part.end; row += rows) {
        const int64_t own = std::min<int64_t>(rows, part.end - row);
        for (int64_t g = 0; g < own; g++)
          for (uint32_t& e = next[size_t(row + g)]; e < matrix.rows[row + g + 1] && matrix.columns[e] < end; e++) {
            const size_t c = matrix.columns[e];
            pattern[c] = uint8_t(pattern[c] | 1 << g);
            values[c * kRowGroup + size_t(g)] = matrix.values[e];
          }
        for (uint32_t c = begin; c < end; c++) {
          if (!pattern[c]) continue;
          of_pattern[pattern[c]].push_back(c);
          pattern[c] = 0;
        }
        words.push_back({int32_t(row)});
        for (int p = 1; p < pattern_count; p++) words.push_back({int32_t(of_pattern[p].size())});
        for (int p = 1; p < pattern_count; p++) {
          for (const uint32_t c : of_pattern[p]) {
            words.push_back({offsets[c]});
            for (int g = 0; g < rows; g++)
              if (p >> g & 1) add_value(values[size_t(c) * kRowGroup + size_t(g)]);
          }
          of_pattern[p].clear();
        }
        if (&block != &blocks.back()) continue;
        for (int64_t j = 0; j < w.rank; j++) {
          words.push_back({int32_t(j * request.tile_floats)});
          for (int64_t g = 0; g < rows; g++) add_value(g < own ? w.a[(row + g) * w.rank + j] : 0.0f);
        }
      }
    }
  }
  for (size_t i = 0; i < begins.size(); i++) {
    const ConvPart& part = parts[i / blocks.size()];
    patterns.push_back({words.data() + begins[i], (part.end - part.begin + rows - 1) / rows});
  }
  for (size_t p = 0; p < parts.size(); p++) parts[p].pattern = patterns.data() + p * blocks.size();
}

bool PackedConv::same_as(const Packing& other) const {
  const auto* packed = dynamic_cast<const PackedConv*>(&other);
  return packed && packed->packed_as == packed_as && packed->offsets == offsets;
}

int64_t PackedConv::bytes() const {
  const size_t floats = b.size() + winograd.size() + dense.size() + a_packed.size();
  return int64_t((floats + offsets.size() + tap_counts.size()) * 4 + rows.size() * sizeof(SparseRow) +
                 entries.size() * sizeof(Entry) + words.size() * sizeof(PatternItem));
}

}  // namespace splore
