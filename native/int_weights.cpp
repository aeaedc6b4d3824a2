#include "int_weights.h"

#include <algorithm>
#include <cstring>

namespace splore {
namespace {

int32_t word_of(const int8_t* four) {
  uint32_t word = 0;
  for (int i = 0; i < 4; i++) word |= uint32_t(uint8_t(four[i])) << 8 * i;
  return int32_t(word);
}

// Gathers the weights of one row after the other, of any order, as blocks that are not zero.
class RowMaker {
 public:
  RowMaker(IntRows& rows, int64_t positions) : rows_(rows), bytes_(size_t(positions) * 4) { rows.begins.push_back(0); }

  void add(int64_t channel, int64_t tap, int64_t taps, int8_t value) {
    if (!value) return;
    const size_t at = size_t(channel / 4 * taps + tap);
    touched_.push_back(uint32_t(at));
    bytes_[at * 4 + size_t(channel % 4)] = value;
  }
  // A part is whole: the sum of two parts' bytes might be none, so they have blocks of their own.
  void finish_part() {
    for (const uint32_t at : touched_) {
      int8_t* four = &bytes_[size_t(at) * 4];
      if (const int32_t word = word_of(four)) rows_.blocks.push_back({at, word});
      std::fill_n(four, 4, int8_t(0));
    }
    touched_.clear();
  }
  void finish_row() {
    const auto before = [](const IntRows::Block& a, const IntRows::Block& b) { return a.position < b.position; };
    std::stable_sort(rows_.blocks.begin() + ptrdiff_t(rows_.begins.back()), rows_.blocks.end(), before);
    rows_.begins.push_back(rows_.blocks.size());
  }

 private:
  IntRows& rows_;
  std::vector<int8_t> bytes_;
  std::vector<uint32_t> touched_;
};

}  // namespace

int32_t IntRows::sum(int64_t row) const {
  int32_t sum = 0;
  for (size_t i = begins[size_t(row)]; i < begins[size_t(row) + 1]; i++)
    for (int byte = 0; byte < 32; byte += 8) sum += int8_t(blocks[i].weights >> byte);
  return sum;
}

IntRows int_rows(const IntWeight& w, int64_t groups) {
  IntRows rows;
  RowMaker maker(rows, (w.channels * groups + 3) / 4 * w.taps);
  for (int64_t i = 0; i < w.n; i++) {
    const int64_t first = i / (w.n / groups) * w.channels;
    if (w.dense)
      for (int64_t k = 0; k < w.k; k++) maker.add(first + k / w.taps, k % w.taps, w.taps, w.dense[i * w.k + k]);
    maker.finish_part();
    if (w.rows)
      for (uint32_t j = w.rows[i]; j < w.rows[i + 1]; j++)
        for (int64_t c = 0; c < 4; c++)
          maker.add(w.positions[j] / w.taps * 4 + c, w.positions[j] % w.taps, w.taps, w.blocks[int64_t(j) * 4 + c]);
    maker.finish_part();
    maker.finish_row();
  }
  return rows;
}

IntRows int_rows(const int8_t* matrix, int64_t count, int64_t channels, int64_t taps) {
  IntWeight w;
  w.n = count, w.channels = channels, w.taps = taps, w.k = channels * taps, w.dense = matrix;
  return int_rows(w, 1);
}

PackedIntConv::PackedIntConv(const IntRows& rows, const IntRows& down_rows, const IntWeight& weight,
                             const std::vector<int32_t>& offsets, int64_t words, int64_t block_words, int part_count,
                             ptrdiff_t tile_floats) {
  const int64_t taps = weight.taps, n = weight.n;
  entries.reserve(rows.blocks.size() + down_rows.blocks.size());
  for (int64_t word = 0; word < words; word += block_words) {
    ConvBlock block{};
    block.channel_begin = int32_t(word), block.channel_end = int32_t(std::min(word + block_words, words));
    block.columns = int32_t((block.channel_end - block.channel_begin) * taps);
    most_columns = std::max<int64_t>(most_columns, block.columns);
    blocks.push_back(block);
  }
  std::vector<Cut> cuts;
  for (const ConvBlock& block : blocks) cuts.push_back(pack(down_rows, 0, down_rows.rows(), block, taps, offsets, tile_floats));
  // About equal in work: each row costs its blocks and some more.
  const auto work = [&](int64_t row) { return rows.begins[size_t(row)] + size_t(row) * 12; };
  for (int64_t p = 1, begin = 0; p <= part_count && begin < n; p++) {
    int64_t end = p == part_count ? n : begin;
    while (end < n && work(end) < work(n) * size_t(p) / size_t(part_count)) end += kRowGroup;
    end = std::min(end, n);
    if (end == begin) continue;
    parts.push_back({int32_t(begin), int32_t(end), nullptr});
    for (const ConvBlock& block : blocks) cuts.push_back(pack(rows, begin, end, block, taps, offsets, tile_floats));
    begin = end;
  }
  for (size_t i = 0; i < cuts.size(); i++)
    (i < blocks.size() ? down : streams).push_back({entries.data() + cuts[i].entry, counts.data() + cuts[i].count});
  for (size_t p = 0; p < parts.size(); p++) parts[p].stream = streams.data() + p * blocks.size();
  const int64_t t_words = (weight.rank + 3) / 4;
  for (int64_t i = 0; i < n; i++)
    for (int64_t word = 0; word < t_words; word++) {
      int8_t four[4] = {};
      for (int64_t j = word * 4; j < std::min(word * 4 + 4, weight.rank); j++) four[j % 4] = weight.a[i * weight.rank + j];
      up.push_back({int32_t(word * tile_floats), word_of(four)});
    }
}

PackedIntConv::Cut PackedIntConv::pack(const IntRows& rows, int64_t begin, int64_t end, const ConvBlock& block, int64_t taps,
                                       const std::vector<int32_t>& offsets, ptrdiff_t tile_floats) {
  const Cut cut{entries.size(), counts.size()};
  const uint32_t first = uint32_t(block.channel_begin * taps), last = uint32_t(block.channel_end * taps);
  const auto before = [](const IntRows::Block& b, uint32_t position) { return b.position < position; };
  for (int64_t i = begin; i < end; i++) {
    const auto row = rows.blocks.begin() + ptrdiff_t(rows.begins[size_t(i)]);
    const auto row_end = rows.blocks.begin() + ptrdiff_t(rows.begins[size_t(i) + 1]);
    auto b = std::lower_bound(row, row_end, first, before);
    const size_t count = entries.size();
    for (; b != row_end && b->position < last; ++b) {
      const ptrdiff_t gathered = ptrdiff_t(b->position - first) * tile_floats;
      if (offsets.empty() && gathered > INT32_MAX) throw Error("a convolution is too large");
      entries.push_back({offsets.empty() ? int32_t(gathered) : offsets[b->position], b->weights});
    }
    counts.push_back(int32_t(entries.size() - count));
  }
  return cut;
}

bool PackedIntConv::same_as(const Packing& other) const {
  const auto* packed = dynamic_cast<const PackedIntConv*>(&other);
  const auto same = [](const AlignedVector<IntBlock>& a, const AlignedVector<IntBlock>& b) {
    return a.size() == b.size() && (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(IntBlock)));
  };
  return packed && packed->counts == counts && packed->parts.size() == parts.size() && packed->blocks.size() == blocks.size() &&
         same(packed->entries, entries) && same(packed->up, up);
}

int64_t PackedIntConv::bytes() const {
  return int64_t((entries.size() + up.size()) * sizeof(IntBlock) + counts.size() * sizeof(int32_t));
}

}  // namespace splore
