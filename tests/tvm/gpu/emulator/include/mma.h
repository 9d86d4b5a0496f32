// Fragments of tensor cores: the first thread of the warp has the whole matrix, and computes all of it.
#pragma once
#include "cuda_fp16.h"

namespace nvcuda {
namespace wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment { T x[16 * 16]; };

inline bool first() { return threadIdx.x % 32 == 0; }

template <typename F, typename T> void fill_fragment(F &f, T value) {
  if (!first()) return;
  for (auto &x : f.x) x = value;
}
// As on a GPU, where it is undefined otherwise.
inline void check(const void *at, unsigned stride, unsigned size) {
  if (reinterpret_cast<std::uintptr_t>(at) % 32 || stride * size % 16) __builtin_trap();
}
template <typename F, typename T> void load_matrix_sync(F &f, const T *from, unsigned stride) {
  check(from, stride, sizeof(T));
  if (!first()) return;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) f.x[i * 16 + j] = from[i * stride + j];
}
template <typename F, typename T> void store_matrix_sync(T *to, const F &f, unsigned stride, layout_t) {
  check(to, stride, sizeof(T));
  if (!first()) return;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[i * stride + j] = f.x[i * 16 + j];
}
template <typename D, typename A, typename B, typename C> void mma_sync(D &d, const A &a, const B &b, const C &c) {
  if (!first()) return;
  for (int i = 0; i < 16; ++i) {
    float row[16];
    for (int j = 0; j < 16; ++j) row[j] = c.x[i * 16 + j];
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 16; ++j) row[j] += float(a.x[i * 16 + k]) * float(b.x[k * 16 + j]);
    for (int j = 0; j < 16; ++j) d.x[i * 16 + j] = row[j];
  }
}
} // namespace wmma
} // namespace nvcuda
