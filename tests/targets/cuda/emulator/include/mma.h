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

namespace precision {
struct tf32 {};
}
template <typename T> struct Held { using type = T; };
template <> struct Held<precision::tf32> { using type = float; };

template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment {
  static constexpr int rows = std::is_same_v<Use, matrix_b> ? K : M, columns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = rows * columns;
  typename Held<T>::type x[num_elements] = {};
};

inline bool first() { return threadIdx.x % 32 == 0; }
// To 11 bits, ties away from 0.
inline float __float_to_tf32(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = (bits + (1u << 12)) & ~((1u << 13) - 1);
  std::memcpy(&value, &bits, 4);
  return value;
}

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
  for (int i = 0; i < F::rows; ++i)
    for (int j = 0; j < F::columns; ++j) f.x[i * F::columns + j] = from[i * stride + j];
}
template <typename F, typename T> void store_matrix_sync(T *to, const F &f, unsigned stride, layout_t) {
  check(to, stride, sizeof(T));
  if (!first()) return;
  for (int i = 0; i < F::rows; ++i)
    for (int j = 0; j < F::columns; ++j) to[i * stride + j] = f.x[i * F::columns + j];
}
// In memory that is looked at, by the first thread for its warp.
template <typename F, typename T, typename Memory>
void load_matrix_sync(F &f, const Pointer<T, Memory> &from, unsigned stride) {
  check(from.at, stride, sizeof(T));
  if (!first()) return;
  for (int i = 0; i < F::rows; ++i)
    for (int j = 0; j < F::columns; ++j) f.x[i * F::columns + j] = from[i * stride + j];
}
template <typename F, typename T, typename Memory>
void store_matrix_sync(const Pointer<T, Memory> &to, const F &f, unsigned stride, layout_t) {
  check(to.at, stride, sizeof(T));
  if (!first()) return;
  for (int i = 0; i < F::rows; ++i)
    for (int j = 0; j < F::columns; ++j) to[i * stride + j] = f.x[i * F::columns + j];
}
template <typename D, typename A, typename B, typename C> void mma_sync(D &d, const A &a, const B &b, const C &c) {
  if (!first()) return;
  for (int i = 0; i < D::rows; ++i) {
    float row[D::columns];
    for (int j = 0; j < D::columns; ++j) row[j] = c.x[i * D::columns + j];
    for (int k = 0; k < A::columns; ++k)
      for (int j = 0; j < D::columns; ++j) row[j] += float(a.x[i * A::columns + k]) * float(b.x[k * B::columns + j]);
    for (int j = 0; j < D::columns; ++j) d.x[i * D::columns + j] = row[j];
  }
}
} // namespace wmma
} // namespace nvcuda
