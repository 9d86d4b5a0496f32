#ifndef DNC_SCALE
#define DNC_SCALE
// TVM includes it for those kernels alone that have halves.
#include <cuda_fp16.h>
template <int N> __device__ __forceinline__ void dnc_multiply(float *x, const float *factors) {
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = x[i] * factors[i];
}
template <int N> __device__ __forceinline__ void dnc_multiply(half *x, const half *factors) {
#ifdef __CUDA_ARCH__
  if (N % 2 == 0) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) ((half2 *)x)[i] = __hmul2(((half2 *)x)[i], ((const half2 *)factors)[i]);
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = x[i] * factors[i];
}
template <class T, int N, class To, class From>
__device__ __forceinline__ void dnc_scale(To to, From factors) {
  alignas(16) T x[N];
  alignas(16) T by[N];
  dnc_move<N * sizeof(T)>(x, to);
  dnc_move<N * sizeof(T)>(by, factors);
  dnc_multiply<N>(x, by);
  dnc_move<N * sizeof(T)>(to, x);
}
#endif
