#ifndef DNC_MMA
#define DNC_MMA
// A product by mma.sync: see mma.py. Of a warp, lane l is thread l % 32.
#ifndef DNC_LANES
// Of Tall times 16 rows of 16 numbers, the registers that a lane multiplies. Each lane says where 8 numbers begin: those
// of row l % 16, from number l / 16 * 8 on. From one 16 rows to the next it is `Apart`.
template <int Tall, int Apart, class From> __device__ __forceinline__ void dnc_load_left(unsigned *left, From from) {
#if __CUDA_ARCH__ >= 750
  unsigned place = (unsigned)__cvta_generic_to_shared(from);
#pragma unroll
  for (int i = 0; i < Tall; ++i)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(left[i * 4]), "=r"(left[i * 4 + 1]), "=r"(left[i * 4 + 2]), "=r"(left[i * 4 + 3])
                 : "r"(place + i * Apart * 2) : "memory");
#endif
}
// For float16 or bfloat16, adds the products of Tall x Wide tiles of 16 x 8 sums, of which a lane has 4 each, over 16 numbers.
template <bool Bfloat, int Tall, int Wide>
__device__ __forceinline__ void dnc_multiply(float *sums, const unsigned *left, const unsigned *right) {
#if __CUDA_ARCH__ >= 800
#define DNC_MULTIPLY(type)                                                                                            \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "     \
               "{%8, %9}, {%0, %1, %2, %3};"                                                                          \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#pragma unroll
  for (int i = 0; i < Tall; ++i)
#pragma unroll
    for (int j = 0; j < Wide; ++j) {
      float *c = sums + (i * Wide + j) * 4;
      const unsigned *a = left + i * 4, *b = right + j * 2;
      if (Bfloat)
        DNC_MULTIPLY("bf16");
      else
        DNC_MULTIPLY("f16");
    }
#undef DNC_MULTIPLY
#endif
}
#endif
// The weights are stored as the lanes want them.
template <int Wide, class From> __device__ __forceinline__ void dnc_load_right(unsigned *right, From from) {
#pragma unroll
  for (int j = 0; j < Wide / 2; ++j) {
    uint4 four = *(uint4*)(from + j * 256);
    right[j * 4] = four.x, right[j * 4 + 1] = four.y, right[j * 4 + 2] = four.z, right[j * 4 + 3] = four.w;
  }
}
// A tile: Down x Side warps; Depth numbers of a row in a step, Stages of which are in shared memory.
template <int Rows_, int Columns_, int Down_, int Side_, int Depth_, int Stages_> struct dnc_tile {
  static constexpr int Rows = Rows_, Columns = Columns_, Down = Down_, Side = Side_, Depth = Depth_, Stages = Stages_;
  static constexpr int Threads = Down * Side * 32, Tall = Rows / Down / 16, Wide = Columns / Side / 8;
  static constexpr int Data = Rows * Depth, Stage = Data + Columns * Depth;
};
// `first` is the number of the tile's first pixel, `begin` that of the block's first step, of Steps.
// Numbers are float16, or bfloat16 held as what is 16 bits long; or if sums are int, two of 8 bits each.
template <class Tile, class Window, class Pixels, int Steps, bool Bfloat, class Sum, class Strips, class Data, class Weights>
__device__ __forceinline__ void dnc_product(Sum *sums, Strips strips, Data data, Weights weights, int first, int begin) {
  constexpr int Depth = Tile::Depth, Stages = Tile::Stages, Threads = Tile::Threads;
  constexpr int Vectors = Depth * Tile::Columns / 8, Slices = Depth / 16;
  static_assert(Slices % 2 == 0, "");
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  dnc_rows<Tile::Rows, Depth, Threads, Window, Pixels> rows(strips, first);
  auto bring = [&](int step, int stage) {
    rows.bring(strips + stage, data, (begin + step) * Depth);
    auto to = strips + (stage + Tile::Data + thread * 8);
    auto from = weights + (step * (Vectors * 8) + thread * 8);
#pragma unroll
    for (int turn = 0; turn < (Vectors + Threads - 1) / Threads; ++turn)
      if (Vectors % Threads == 0 || thread + turn * Threads < Vectors)
        dnc_copy<16>(to + turn * Threads * 8, from + turn * Threads * 8, true);
  };
  const int row = warp / Tile::Side * (Tile::Tall * 16) + lane % 16, column = warp % Tile::Side * (Tile::Wide * 8);
  const int left_stand = row * Depth, left_shift = lane / 16 ^ dnc_shift<Depth>(row);
  const int right_stand = Tile::Data + column * 16 + lane * 8;
  unsigned left[2][Tile::Tall * 4], right[2][Tile::Wide * 2];
  auto load = [&](int slice, int stage) {
    dnc_load_left<Tile::Tall, 16 * Depth>(left[slice % 2], strips + (stage + left_stand + (left_shift ^ slice * 2) * 8));
    dnc_load_right<Tile::Wide>(right[slice % 2], strips + (stage + right_stand + slice * (Tile::Columns * 16)));
  };
#pragma unroll
  for (int i = 0; i < Tile::Tall * Tile::Wide * 4; ++i) sums[i] = 0;
#pragma unroll
  for (int step = 0; step < Stages - 1; ++step) {
    if (step < Steps) bring(step, step * Tile::Stage);
    dnc_commit();
  }
  dnc_wait<Stages - 2>();
  __syncthreads();
  load(0, 0);
  int reading = 0, writing = (Stages - 1) * Tile::Stage;
#pragma unroll 1
  for (int step = 0; step < Steps; ++step) {
    int next = reading == (Stages - 1) * Tile::Stage ? 0 : reading + Tile::Stage;
#pragma unroll
    for (int slice = 0; slice < Slices; ++slice) {
      if (slice < Slices - 1) {
        load(slice + 1, reading);
      } else if (step + 1 < Steps) {
        dnc_wait<Stages - 2>();
        __syncthreads();
        load(0, next);
      }
      if (slice == 0) {
        // Into the stage of the step before, which all threads have read.
        if (step + Stages - 1 < Steps) bring(step + Stages - 1, writing);
        dnc_commit();
      }
      dnc_multiply<Bfloat, Tile::Tall, Tile::Wide>(sums, left[slice % 2], right[slice % 2]);
    }
    writing = reading;
    reading = next;
  }
}
#endif
