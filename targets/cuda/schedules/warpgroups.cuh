#ifndef DNC_WARPGROUPS
#define DNC_WARPGROUPS
// A product by wgmma: see warpgroups.py. Of a warpgroup, which is 128 threads, all call what multiplies.
#ifndef DNC_PROXIES
struct dnc_f16;
struct dnc_bf16;
template <int Columns, class Type> struct dnc_wgmma;
__device__ __forceinline__ int dnc_warpgroup() { return __shfl_sync(0xffffffff, threadIdx.x / 128, 0); }
template <class From> __device__ __forceinline__ unsigned dnc_shared(From from) {
  return (unsigned)__cvta_generic_to_shared(from);
}
// What threads wrote into shared memory can be read by wgmma and the copy engine, once a barrier is behind it.
__device__ __forceinline__ void dnc_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// A place to wait at for one copy after the other.
template <class Place> __device__ __forceinline__ void dnc_expect(Place place) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(dnc_shared(place)) : "memory");
}
// Begins to copy a multiple of 16 bytes from a multiple of 16 to another.
template <int Size, class To, class From, class Place>
__device__ __forceinline__ void dnc_bulk(To to, From from, Place place) {
  unsigned at = dnc_shared(place);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "n"(Size) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(dnc_shared(to)), "l"(from), "n"(Size), "r"(at) : "memory");
}
// Waits for the first, third, ... copy of a place (odd = 0), or for the second, fourth, ...
template <class Place> __device__ __forceinline__ void dnc_await(Place place, int odd) {
  asm volatile("{\n.reg .pred there;\nagain:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n@!there bra again;\n}\n"
               ::"r"(dnc_shared(place)), "r"(odd) : "memory");
}
__device__ __forceinline__ void dnc_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void dnc_products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ __forceinline__ void dnc_products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
#endif
// Where wgmma finds rows of 128 bytes whose vectors of 16 are exchanged by row % 8, 8 rows being 1024 bytes.
__device__ __forceinline__ unsigned long long dnc_matrix(unsigned at) {
  return 1ull << 62 | 1024ull >> 4 << 32 | 1ull << 16 | (at & 0x3ffff) >> 4;
}
// A tile: of each of Groups warpgroups, Tall times 64 rows; Stages steps of 64 numbers of a row are in shared memory.
template <int Groups_, int Tall_, int Columns_, int Stages_, class Type_> struct dnc_grouped {
  typedef Type_ Type;
  static constexpr int Groups = Groups_, Tall = Tall_, Columns = Columns_, Stages = Stages_, Depth = 64;
  static constexpr int Threads = Groups * 128, Rows = Groups * Tall * 64;
  static constexpr int Data = Rows * Depth, Stage = Data + Columns * Depth;
};
template <class Tile, class Window, class Pixels, int Steps, class Strips, class Data, class Weights>
__device__ __forceinline__ void dnc_grouped_product(float *sums, Strips strips, Data data, Weights weights, int first,
                                                    int begin) {
  constexpr int Depth = Tile::Depth, Stages = Tile::Stages, Ahead = Stages - 2, Columns = Tile::Columns;
  __shared__ alignas(8) uint2 arrived[8];
  static_assert(Stages <= 8, "");
  const unsigned start = dnc_shared(strips);
  if (threadIdx.x == 0) {
    // What wgmma reads stands on multiples of 1024 bytes.
    if (start % 1024) __trap();
#pragma unroll
    for (int stage = 0; stage < Stages; ++stage) dnc_expect(arrived + stage);
    dnc_fence();
  }
  __syncthreads();
  dnc_rows<Tile::Rows, Depth, Tile::Threads, Window, Pixels> rows(strips, first);
  auto bring = [&](int step, int stage) {
    rows.bring(strips + stage * Tile::Stage, data, (begin + step) * Depth);
    if (threadIdx.x == 0)
      dnc_bulk<Columns * Depth * 2>(strips + (stage * Tile::Stage + Tile::Data), weights + step * (Columns * Depth),
                                    arrived + stage);
  };
#pragma unroll
  for (int i = 0; i < Tile::Tall * Columns / 2; ++i) sums[i] = 0;
#pragma unroll
  for (int step = 0; step < Ahead; ++step) {
    if (step < Steps) bring(step, step);
    dnc_commit();
  }
  int stage = 0, next = Ahead, odd = 0;
#pragma unroll 1
  for (int step = 0; step < Steps; ++step) {
    dnc_wait<Ahead - 1>();
    dnc_fence();
    __syncthreads();
    dnc_await(arrived + stage, odd);
    unsigned long long left = dnc_matrix(start + stage * (Tile::Stage * 2) + dnc_warpgroup() * (Tile::Tall * 8192));
    unsigned long long right = dnc_matrix(start + stage * (Tile::Stage * 2) + Tile::Data * 2);
    dnc_products();
#pragma unroll
    for (int slice = 0; slice < Depth / 16; ++slice)
#pragma unroll
      for (int i = 0; i < Tile::Tall; ++i)
        dnc_wgmma<Columns, typename Tile::Type>::multiply(sums + i * (Columns / 2), left + (i * 8192 + slice * 32) / 16,
                                                          right + slice * 32 / 16);
    dnc_products_end();
    // Into the stage of the step before the last, which all warpgroups have multiplied: the barrier is behind that.
    if (step + Ahead < Steps) bring(step + Ahead, next);
    dnc_commit();
    dnc_products_wait<1>();
    if (++stage == Stages) stage = 0, odd ^= 1;
    if (++next == Stages) next = 0;
  }
  dnc_products_wait<0>();
}
#endif
