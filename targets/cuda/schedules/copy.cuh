#ifndef DNC_COPY
#define DNC_COPY
template <int N> struct dnc_word;
template <> struct dnc_word<2> { typedef unsigned short type; };
template <> struct dnc_word<4> { typedef unsigned type; };
template <> struct dnc_word<8> { typedef uint2 type; };
template <> struct dnc_word<16> { typedef uint4 type; };
template <int N, class To, class From> __device__ __forceinline__ void dnc_move(To to, From from) {
  typedef typename dnc_word<N>::type word;
  *(word*)(to) = *(word*)(from);
}
#ifndef DNC_ASYNC
template <int N> __device__ __forceinline__ void dnc_copy(void *to, const void *from, bool inside) {
#if __CUDA_ARCH__ >= 800
  unsigned place = (unsigned)__cvta_generic_to_shared(to);
  // Of size 0 nothing is read.
  int size = inside ? N : 0;
  if (N == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(size) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(from), "n"(N), "r"(size) : "memory");
#else
  typedef typename dnc_word<N>::type word;
  word value = {};
  if (inside) value = *(const word *)from;
  *(word *)to = value;
#endif
}
__device__ __forceinline__ void dnc_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N> __device__ __forceinline__ void dnc_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}
#endif
#endif
