// What is Hopper's alone: products of a warpgroup, which go on while its threads do, and copies by an engine.
// After NVIDIA's PTX ISA: "Asynchronous warpgroup level matrix instructions", "mbarrier", "cp.async.bulk" and "Async proxy".
//
// Both happen as late as they may: products when they are waited for, copies when the first thread waits for them. What
// would be wrong by then on a GPU, sooner or later, is a fault:
//
//   - tensor cores read what a thread wrote, or copied, and did not fence, or what is not there yet;
//   - something is written while they may read it;
//   - the threads of a warpgroup ask for different products, or for one without the fence before it;
//   - a thread waits for a copy that nobody began; a place to wait at is taken for two copies at once.
#pragma once
#include "blocks.h"
#include "cuda_fp16.h"

#include <map>

#define DNC_PROXIES
constexpr unsigned kGroup = 128, kGroups = 8, kBulk = 16;
// Where dynamic shared memory begins; wgmma's swizzle goes by addresses.
constexpr unsigned kFirst = 2048;

struct Product {
  std::uint32_t issued;
  std::vector<const char *> read;
  std::function<void()> finish;
};
// What a thread has asked for in a block.
struct Engaged {
  std::uint32_t block = 0;
  bool fenced = false;
  std::size_t products = 0;
  std::vector<Chunk *> written;
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
  std::map<const void *, std::uint32_t> seen;
};
inline Engaged &engaged() {
  static Engaged all[kGroup * kGroups];
  Engaged &mine = all[cuda_state.thread];
  if (mine.block != cuda_state.block_begin) {
    bool left = !mine.open.empty();
    for (auto &group : mine.groups) left |= !group.empty();
    if (left) cuda_fail("a block before this one ended without waiting for its products", nullptr);
    mine = {};
    mine.block = cuda_state.block_begin;
  }
  return mine;
}
inline void note_chunk(Chunk &chunk) {
  ++chunk.written;
  engaged().written.push_back(&chunk);
}
inline void dnc_fence() {
  for (Chunk *chunk : engaged().written) --chunk->written;
  engaged().written.clear();
}

inline int dnc_warpgroup() { return cuda_state.thread / kGroup; }
inline Block &dynamic() {
  static Block memory;
  return memory;
}
template <typename T> unsigned dnc_shared(const Pointer<T, Block> &from) {
  if (!from.memory.chunks) cuda_fail("an address of shared memory that is not dynamic", from.at);
  dynamic() = from.memory;
  return kFirst + (reinterpret_cast<const char *>(from.at) - from.memory.base);
}
inline void __trap() { cuda_fail("the kernel gave up", nullptr); }

// A place to wait at: an mbarrier of one arrival, which is that of the copy.
struct Expected {
  std::uint32_t block = 0, phase = 0;
  std::function<void()> copy;
};
template <typename T> Expected &place_of(const Pointer<T, Block> &place) {
  static std::map<const void *, Expected> all;
  place.memory.touch(reinterpret_cast<const char *>(place.at), 8, false);
  Expected &found = all[place.at];
  if (found.block != cuda_state.block_begin) {
    if (found.copy) cuda_fail("a block before this one ended without waiting for a copy", place.at);
    found = {cuda_state.block_begin};
  }
  return found;
}
template <typename T> void dnc_expect(const Pointer<T, Block> &place) {
  if (reinterpret_cast<std::uintptr_t>(place.at) % 8) cuda_fail("a barrier that is not aligned", place.at);
  place.memory.touch(reinterpret_cast<const char *>(place.at), 8, true);
}
template <int Size, typename T, typename U, typename P>
void dnc_bulk(const Pointer<T, Block> &to, const Pointer<U, Global> &from, const Pointer<P, Block> &place) {
  static_assert(Size % 16 == 0, "");
  Expected &there = place_of(place);
  if (there.copy) cuda_fail("a place to wait at for two copies at once", place.at);
  char *start = reinterpret_cast<char *>(to.at);
  const char *source = reinterpret_cast<const char *>(from.at);
  if ((start - to.memory.base) % 16 || reinterpret_cast<std::uintptr_t>(source) % 16)
    cuda_fail("a copy that is not aligned", start);
  from.memory.touch(source, Size, false);
  to.memory.touch(start, Size, true);
  Block memory = to.memory;
  for (int i = 0; i < Size; i += 16) {
    Chunk &chunk = memory.chunk(start + i);
    // It is no thread that writes.
    --chunk.written;
    engaged().written.pop_back();
    ++chunk.pending;
    chunk.place = place.at;
    chunk.phase = there.phase;
  }
  there.copy = [=] {
    std::memcpy(start, source, Size);
    for (int i = 0; i < Size; i += 16) --memory.chunk(start + i).pending;
  };
}
template <typename P> void dnc_await(const Pointer<P, Block> &place, int odd) {
  Expected &there = place_of(place);
  // It waits for the end of a phase of this parity.
  if (int(there.phase % 2) == odd) {
    if (!there.copy) cuda_fail("a thread waits for a copy that nobody began", place.at);
    auto copy = std::move(there.copy);
    there.copy = nullptr;
    copy();
    ++there.phase;
  }
  engaged().seen[place.at] = there.phase;
}

inline void dnc_products() { engaged().fenced = true; }
inline void dnc_products_end() {
  Engaged &mine = engaged();
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
  mine.fenced = false;
}
template <int N> void dnc_products_wait() {
  auto &groups = engaged().groups;
  for (; groups.size() > N; groups.pop_front())
    for (Product &product : groups.front()) {
      for (const char *at : product.read)
        for (int cell = 0; cell < 8; ++cell)
          if (dynamic().writers[(at - dynamic().base) / 2 + cell].epoch >= product.issued)
            cuda_fail("it is written while tensor cores read it", at);
      product.finish();
    }
}

// A matrix of which the rows are along k, as a descriptor tells it.
struct Matrix {
  unsigned start, stride;
  explicit Matrix(unsigned long long said) : start((said & 0x3fff) << 4), stride((said >> 32 & 0x3fff) << 4) {
    if (said >> 62 != 1 || said >> 49 & 7) cuda_fail("a matrix that is not swizzled by 128 bytes", nullptr);
    if (said >> 46 & 7 || said >> 52 & 0x3ff || said >> 14 & 3 || said >> 30 & 3)
      cuda_fail("bits of a descriptor that must be 0", nullptr);
  }
  // Where 16 bytes of a row stand: 8 rows are a block of 1024 bytes; bits 4 to 6 of an address are changed by 7 to 9.
  const char *at(unsigned row, unsigned vector) const {
    unsigned address = start + row / 8 * stride + row % 8 * 128 + vector * 16;
    address ^= (address >> 7 & 7) << 4;
    if (address < kFirst || address + 16 > kFirst + dynamic().size)
      cuda_fail("tensor cores read outside of shared memory", nullptr);
    return dynamic().base + (address - kFirst);
  }
};
struct dnc_f16 { static float number(std::uint16_t bits); };
struct dnc_bf16 { static float number(std::uint16_t bits); };
inline float dnc_f16::number(std::uint16_t bits) {
  static const std::vector<float> all = [] {
    std::vector<float> made(1 << 16);
    for (unsigned i = 0; i < made.size(); ++i) {
      std::uint16_t each = i;
      half value;
      std::memcpy(&value, &each, 2);
      made[i] = value;
    }
    return made;
  }();
  return all[bits];
}
inline float dnc_bf16::number(std::uint16_t bits) {
  std::uint32_t wide = std::uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

template <int Columns, class Type> struct dnc_wgmma {
  static_assert(Columns % 8 == 0 && Columns <= 256, "");
  static void multiply(float *sums, unsigned long long left, unsigned long long right) {
    Engaged &mine = engaged();
    if (!mine.fenced) cuda_fail("a product without a fence before it", nullptr);
    std::size_t number = mine.products++;
    unsigned turn = cuda_state.thread % kGroup;
    // Each thread by itself says what the others must say too.
    static std::map<std::pair<unsigned, std::size_t>, std::pair<unsigned long long, unsigned long long>> asked;
    static std::uint32_t block;
    if (block != cuda_state.block_begin) asked.clear(), block = cuda_state.block_begin;
    auto wanted = std::make_pair(left, right);
    if (asked.try_emplace({cuda_state.thread / kGroup, number}, wanted).first->second != wanted)
      cuda_fail("threads of a warpgroup that ask for different products", nullptr);
    Matrix a(left), b(right);
    Product product{cuda_state.epoch, {}, nullptr};
    for (unsigned vector = turn; vector < (64 + Columns) * 2; vector += kGroup)
      product.read.push_back(vector < 128 ? a.at(vector / 2, vector % 2) : b.at(vector / 2 - 64, vector % 2));
    for (const char *at : product.read) {
      Chunk &chunk = dynamic().chunk(at);
      if (chunk.pending) cuda_fail("tensor cores read what is not there yet", at);
      if (chunk.written) cuda_fail("tensor cores read what a thread wrote and did not fence", at);
      if (chunk.place && mine.seen[chunk.place] <= chunk.phase)
        cuda_fail("tensor cores read what a thread has not waited for", at);
      dynamic().touch(at, 16, false);
    }
    product.finish = [=] {
      // The sums of lane l of warp w: of the rows 16 w + l / 4 and 8 below, in columns l % 4 * 2, the next one, and so on
      // by 8.
      unsigned row = turn / 32 * 16 + turn % 32 / 4;
      float lefts[2][16], rights[16];
      for (int low = 0; low < 2; ++low) numbers(lefts[low], a, row + low * 8);
      for (unsigned column = 0; column < Columns / 4; ++column) {
        numbers(rights, b, column / 2 * 8 + turn % 4 * 2 + column % 2);
        for (int low = 0; low < 2; ++low) {
          float &sum = sums[column / 2 * 4 + low * 2 + column % 2];
          for (int k = 0; k < 16; ++k) sum += lefts[low][k] * rights[k];
        }
      }
    };
    mine.open.push_back(std::move(product));
  }
  static void numbers(float *to, const Matrix &from, unsigned row) {
    for (unsigned vector = 0; vector < 2; ++vector) {
      std::uint16_t bits[8];
      std::memcpy(bits, from.at(row, vector), 16);
      for (int k = 0; k < 8; ++k) to[vector * 8 + k] = Type::number(bits[k]);
    }
  }
};
