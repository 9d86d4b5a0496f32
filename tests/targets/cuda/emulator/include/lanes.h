// What the threads of a warp do together: loads of matrices and products by mma.sync, lane by lane as NVIDIA's PTX ISA
// lays the matrices out ("Matrix multiply-accumulate operation", ldmatrix and mma.m16n8k16). They order nothing: what
// needs a barrier on a GPU needs it here.
#pragma once
#include "checked.h"
#include "cuda_fp16.h"

#define DNC_LANES
// What the lanes have said, until the next time but one.
template <int Count> using Said = unsigned[32][Count];
template <int Count> const Said<Count> &exchange(const unsigned *words) {
  constexpr int kWarps = 32, kWords = 64;
  static_assert(Count <= kWords, "");
  struct Turn { std::uint32_t block = 0; unsigned count = 0; };
  static Turn turns[kWarps * 32];
  static unsigned said[2][kWarps][32 * kWords];
  Turn &turn = turns[cuda_state.thread];
  if (turn.block != cuda_state.block_begin) turn = {cuda_state.block_begin, 0};
  unsigned *warp = said[turn.count++ % 2][cuda_state.thread / 32];
  std::memcpy(warp + cuda_state.thread % 32 * Count, words, Count * 4);
  cuda_exchange();
  return *reinterpret_cast<Said<Count> *>(warp);
}
inline unsigned __ballot_sync(unsigned mask, bool truth) {
  if (mask != ~0u) cuda_fail("only some lanes of a warp are asked", nullptr);
  unsigned mine = truth, votes = 0;
  auto &said = exchange<1>(&mine);
  for (int lane = 0; lane < 32; ++lane) votes |= said[lane][0] << lane;
  return votes;
}
struct alignas(16) Row { unsigned words[4]; };
template <int Tall, int Apart, typename T> void dnc_load_left(unsigned *left, const Pointer<T, Block> &from) {
  unsigned rows[Tall * 4], lane = cuda_state.thread % 32;
  // Eight rows are read at once.
  static unsigned banks[1024];
  banks[cuda_state.thread] = reinterpret_cast<std::uintptr_t>(from.at) / 16 % 8;
  cuda_exchange();
  for (unsigned other = cuda_state.thread / 8 * 8; other < cuda_state.thread; ++other)
    if (banks[other] == banks[cuda_state.thread]) cuda_fail("rows of a matrix are in the same memory banks", from.at);
  for (int i = 0; i < Tall; ++i) {
    Row row = *Vector<Row>::at(from + i * Apart);
    std::memcpy(rows + i * 4, row.words, 16);
  }
  auto &said = exchange<Tall * 4>(rows);
  for (int i = 0; i < Tall; ++i)
    for (int matrix = 0; matrix < 4; ++matrix)
      left[i * 4 + matrix] = said[matrix * 8 + lane / 4][i * 4 + lane % 4];
}
template <bool Bfloat> float half_of(unsigned word, int which) {
  std::uint16_t bits = word >> 16 * which;
  if (Bfloat) {
    std::uint32_t whole = std::uint32_t(bits) << 16;
    float number;
    std::memcpy(&number, &whole, 4);
    return number;
  }
  half value;
  std::memcpy(&value, &bits, 2);
  return value;
}
template <bool Bfloat, int Tall, int Wide>
void dnc_multiply(float *sums, const unsigned *left, const unsigned *right) {
  unsigned words[Tall * 4 + Wide * 2], lane = cuda_state.thread % 32;
  std::memcpy(words, left, Tall * 16);
  std::memcpy(words + Tall * 4, right, Wide * 8);
  auto &said = exchange<Tall * 4 + Wide * 2>(words);
  float a[Tall][2][16], b[Wide][2][16];
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < Tall; ++i)
      for (int low = 0; low < 2; ++low)
        a[i][low][k] = half_of<Bfloat>(said[lane / 4 * 4 + k % 8 / 2][i * 4 + low + k / 8 * 2], k % 2);
    for (int j = 0; j < Wide; ++j)
      for (int next = 0; next < 2; ++next)
        b[j][next][k] = half_of<Bfloat>(said[(lane % 4 * 2 + next) * 4 + k % 8 / 2][Tall * 4 + j * 2 + k / 8], k % 2);
  }
  for (int i = 0; i < Tall; ++i)
    for (int j = 0; j < Wide; ++j)
      for (int low = 0; low < 2; ++low)
        for (int next = 0; next < 2; ++next) {
          float &sum = sums[(i * Wide + j) * 4 + low * 2 + next];
          for (int k = 0; k < 16; ++k) sum += a[i][low][k] * b[j][next][k];
        }
}
// What integers.cuh makes of 32 bytes of a row and of a column, by `term` of four of each.
template <int Tall, int Wide, typename Sum, typename Term>
void multiply_words(Sum *sums, const unsigned *left, const unsigned *right, Term term) {
  unsigned words[Tall * 4 + Wide * 2], lane = cuda_state.thread % 32;
  std::memcpy(words, left, Tall * 16);
  std::memcpy(words + Tall * 4, right, Wide * 8);
  auto &said = exchange<Tall * 4 + Wide * 2>(words);
  for (int i = 0; i < Tall; ++i)
    for (int j = 0; j < Wide; ++j)
      for (int low = 0; low < 2; ++low)
        for (int next = 0; next < 2; ++next)
          for (int k = 0; k < 8; ++k)
            sums[(i * Wide + j) * 4 + low * 2 + next] +=
                term(said[lane / 4 * 4 + k % 4][i * 4 + low + k / 4 * 2],
                     said[(lane % 4 * 2 + next) * 4 + k % 4][Tall * 4 + j * 2 + k / 4]);
}
template <bool, int Tall, int Wide> void dnc_multiply(int *sums, const unsigned *left, const unsigned *right) {
  multiply_words<Tall, Wide>(sums, left, right, [](unsigned a, unsigned b) {
    int sum = 0;
    for (int byte = 0; byte < 4; ++byte) sum += int(std::int8_t(a >> 8 * byte)) * int(std::int8_t(b >> 8 * byte));
    return sum;
  });
}
template <bool, int Tall, int Wide> void dnc_multiply(unsigned *sums, const unsigned *left, const unsigned *right) {
  multiply_words<Tall, Wide>(sums, left, right, [](unsigned a, unsigned b) { return unsigned(__popc(a ^ b)); });
}
