#ifndef DNC_PARTS
#define DNC_PARTS
__device__ unsigned dnc_arrivals[TILES];
__device__ __forceinline__ bool dnc_arrived_last(int tile, int parts) {
  __shared__ unsigned before[1];
  __threadfence();
  __syncthreads();
  // The last one leaves 0 for the next kernel.
  if (threadIdx.x == 0) before[0] = atomicInc(dnc_arrivals + tile, parts - 1);
  __syncthreads();
  __threadfence();
  return before[0] == parts - 1;
}
template <int N, class T> struct alignas(4 * N) dnc_numbers { T x[N]; };
template <int N, class T, class To, class From>
__device__ __forceinline__ void dnc_gather(To to, From from, int parts, int stride) {
  typedef dnc_numbers<N, T> numbers;
  numbers sum = {};
#pragma unroll 4
  for (int part = 0; part < parts; ++part) {
    numbers more = *(numbers*)(from + part * stride);
#pragma unroll
    for (int i = 0; i < N; ++i) sum.x[i] += more.x[i];
  }
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = sum.x[i];
}
#endif
