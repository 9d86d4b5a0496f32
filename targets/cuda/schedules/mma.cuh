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
// The sums of 16 rows, `stride` apart, from a lane's own place on.
template <int Wide, class To> __device__ __forceinline__ void dnc_put_sums(To first, const float *sums, int stride) {
  auto to = &*(float*)(first);
#pragma unroll
  for (int j = 0; j < Wide; ++j) {
    *(float2*)(to + j * 8) = make_float2(sums[j * 4], sums[j * 4 + 1]);
    *(float2*)(to + (j * 8 + 8 * stride)) = make_float2(sums[j * 4 + 2], sums[j * 4 + 3]);
  }
}
// A tile: Down x Side warps; Depth numbers of a row in a step, Stages of which are in shared memory.
template <int Rows_, int Columns_, int Down_, int Side_, int Depth_, int Stages_> struct dnc_tile {
  static constexpr int Rows = Rows_, Columns = Columns_, Down = Down_, Side = Side_, Depth = Depth_, Stages = Stages_;
  static constexpr int Threads = Down * Side * 32, Tall = Rows / Down / 16, Wide = Columns / Side / 8;
  static constexpr int Data = Rows * Depth, Stage = Data + Columns * Depth;
  // Where vectors of 8 numbers stand in a row, so that 8 rows below each other are in all memory banks.
  __device__ __forceinline__ static int shift(int row) { return Depth == 32 ? row / 2 % 4 : row % 8; }
};
// A convolution: maps, window, and how many numbers of a pixel are together in memory.
template <int Height_, int Width_, int Channels_, int Inputs_, int High_, int Broad_, int Down_, int Right_, int Lanes_>
struct dnc_window {
  static constexpr int Height = Height_, Width = Width_, Channels = Channels_, Inputs = Inputs_, High = High_;
  static constexpr int Broad = Broad_, Down = Down_, Right = Right_, Lanes = Lanes_, Terms = High * Broad * Inputs;
};
// What the pixels of a tile are: the maps' sides, and of windows the stride and how far they reach out.
// Plain: they are the map's own.
template <int Pixels_, int Tall_, int Wide_, int Y_, int X_, int Top_, int Left_, int Plain_> struct dnc_pixels {
  static constexpr int Pixels = Pixels_, Tall = Tall_, Wide = Wide_, Y = Y_, X = X_, Top = Top_, Left = Left_;
  static constexpr bool Plain = Plain_;
};
// `first` is the number of the tile's first pixel, `begin` that of the block's first step, of Steps.
// Numbers are float16, or bfloat16 held as what is 16 bits long; or if sums are int, two of 8 bits each.
template <class Tile, class Window, class Pixels, int Steps, bool Bfloat, class Sum, class Strips, class Data, class Weights>
__device__ __forceinline__ void dnc_product(Sum *sums, Strips strips, Data data, Weights weights, int first, int begin) {
  constexpr int Depth = Tile::Depth, Stages = Tile::Stages, Threads = Tile::Threads, Lanes = Window::Lanes;
  constexpr int Across = Depth / Lanes, Below = Threads / Across, Turns = Tile::Rows / Below;
  constexpr int Vectors = Depth * Tile::Columns / 8, Slices = Depth / 16;
  // All numbers of a step are of one place in the window.
  constexpr bool Whole = Window::Inputs % Depth == 0 || Window::High * Window::Broad == 1;
  constexpr unsigned Never = 1u << 15;
  static_assert(Turns * Below == Tile::Rows && Slices % 2 == 0, "");
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int across = thread % Across * Lanes, below = thread / Across;
  // Where the windows of the pixels begin that the thread brings, and which rows and columns of them are outside.
  int places[Turns];
  unsigned outside[Turns];
  if (Pixels::Plain) {
#pragma unroll
    for (int turn = 0; turn < Turns; ++turn) {
      int pixel = first + below + turn * Below;
      places[turn] = pixel * Window::Channels;
      outside[turn] = pixel < Pixels::Pixels ? Never : ~0u;
    }
  } else {
    // Each pixel's is found by one thread.
#pragma unroll
    for (int row = thread; row < Tile::Rows; row += Threads) {
      int pixel = first + row;
      unsigned bits = pixel < Pixels::Pixels ? Never : ~0u;
      int image = pixel / (Pixels::Tall * Pixels::Wide), rest = pixel % (Pixels::Tall * Pixels::Wide);
      int top = rest / Pixels::Wide * Pixels::Y - Pixels::Top, left = rest % Pixels::Wide * Pixels::X - Pixels::Left;
#pragma unroll
      for (int y = 0; y < Window::High; ++y)
        if ((unsigned)(top + y * Window::Down) >= Window::Height) bits |= 1u << y;
#pragma unroll
      for (int x = 0; x < Window::Broad; ++x)
        if ((unsigned)(left + x * Window::Right) >= Window::Width) bits |= 1u << (16 + x);
      int place = ((image * Window::Height + top) * Window::Width + left) * Window::Channels;
      *(int2*)(strips + row * 4) = make_int2(place, (int)bits);
    }
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < Turns; ++turn) {
      int2 found = *(int2*)(strips + (below + turn * Below) * 4);
      places[turn] = found.x;
      outside[turn] = found.y;
    }
    __syncthreads();
  }
  if (Whole)
#pragma unroll
    for (int turn = 0; turn < Turns; ++turn) places[turn] += across;
  // Where the thread's first vector of data stands in a stage; those after it are whole rows of banks below.
  const int stand = below * Depth + across % 8;
  auto bring = [&](int step, int stage) {
    int k = (begin + step) * Depth + (Whole ? 0 : across);
    int tap = k / Window::Inputs, y = tap / Window::Broad, x = tap % Window::Broad;
    int offset = (y * Window::Down * Window::Width + x * Window::Right) * Window::Channels + k % Window::Inputs;
    unsigned bits = 1u << y | 1u << (16 + x);
    if (Window::High * Window::Broad == 1) offset = k, bits = 1u | 1u << 16;
    if ((Whole ? k + across : k) >= Window::Terms) bits = Never;
#pragma unroll
    for (int turn = 0; turn < Turns; ++turn) {
      int row = below + turn * Below;
      int to = stage + stand + turn * Below * Depth + (across / 8 ^ Tile::shift(row)) * 8;
      dnc_copy<Lanes * 2>(strips + to, data + (places[turn] + offset), !(outside[turn] & bits));
    }
    auto to = strips + (stage + Tile::Data + thread * 8);
    auto from = weights + (step * (Vectors * 8) + thread * 8);
#pragma unroll
    for (int turn = 0; turn < (Vectors + Threads - 1) / Threads; ++turn)
      if (Vectors % Threads == 0 || thread + turn * Threads < Vectors)
        dnc_copy<16>(to + turn * Threads * 8, from + turn * Threads * 8, true);
  };
  const int row = warp / Tile::Side * (Tile::Tall * 16) + lane % 16, column = warp % Tile::Side * (Tile::Wide * 8);
  const int left_stand = row * Depth, left_shift = lane / 16 ^ Tile::shift(row);
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
