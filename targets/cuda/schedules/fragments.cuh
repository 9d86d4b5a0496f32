#ifndef DNC_FRAGMENTS
#define DNC_FRAGMENTS
#include <mma.h>
template <class Fragment, class To>
__device__ __forceinline__ void dnc_store_fragment(Fragment *fragments, int number, To to, int stride) {
  nvcuda::wmma::store_matrix_sync(&*(float*)(to), fragments[number], stride, nvcuda::wmma::mem_row_major);
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
// What is in shared memory nvcc does not see by itself for fragments of TF32.
template <class Fragment, class From>
__device__ __forceinline__ void dnc_load_tf32_left(Fragment &to, From from, int stride) {
#ifdef __CUDA_ARCH__
  unsigned *x = reinterpret_cast<unsigned *>(to.x);
  asm volatile("wmma.load.a.sync.aligned.row.m16n16k8.shared.tf32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)), "r"(stride) : "memory");
#else
  nvcuda::wmma::load_matrix_sync(to, from, stride);
#endif
}
template <class Fragment, class From>
__device__ __forceinline__ void dnc_load_tf32_right(Fragment &to, From from, int stride) {
#ifdef __CUDA_ARCH__
  unsigned *x = reinterpret_cast<unsigned *>(to.x);
  asm volatile("wmma.load.b.sync.aligned.row.m16n16k8.shared.tf32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"((unsigned)__cvta_generic_to_shared(from)), "r"(stride) : "memory");
#else
  nvcuda::wmma::load_matrix_sync(to, from, stride);
#endif
}
template <int Tall, int Wide, class Sums, class Data, class Weights>
__device__ __forceinline__ void dnc_multiply_tf32(Sums *sums, Data data, int deep, Weights weights, int broad) {
  using namespace nvcuda::wmma;
  fragment<matrix_a, 16, 16, 8, precision::tf32, row_major> left[Tall];
  fragment<matrix_b, 16, 16, 8, precision::tf32, row_major> right[Wide];
#pragma unroll
  for (int i = 0; i < Tall; ++i) {
    dnc_load_tf32_left(left[i], data + i * 16 * deep, deep);
#pragma unroll
    for (int e = 0; e < left[i].num_elements; ++e) left[i].x[e] = __float_to_tf32(left[i].x[e]);
  }
#pragma unroll
  for (int j = 0; j < Wide; ++j) dnc_load_tf32_right(right[j], weights + j * 16, broad);
#pragma unroll
  for (int i = 0; i < Tall; ++i)
#pragma unroll
    for (int j = 0; j < Wide; ++j) mma_sync(sums[i * Wide + j], left[i], right[j], sums[i * Wide + j]);
}
#endif
#endif
