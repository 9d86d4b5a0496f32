#ifndef DNC_STRIPS
#define DNC_STRIPS
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
// Where vectors of 8 numbers stand in a row, so that 8 rows below each other are in all memory banks: of 64 numbers, as
// wgmma wants them.
template <int Depth> __device__ __forceinline__ int dnc_shift(int row) { return Depth == 32 ? row / 2 % 4 : row % 8; }
// Of a strip of data, whose rows are pixels, Depth numbers long, what a thread brings.
template <int Rows, int Depth, int Threads, class Window, class Pixels> struct dnc_rows {
  static constexpr int Lanes = Window::Lanes, Across = Depth / Lanes, Below = Threads / Across, Turns = Rows / Below;
  static_assert(Turns * Below == Rows, "");
  // All numbers of a step are of one place in the window.
  static constexpr bool Whole = Window::Inputs % Depth == 0 || Window::High * Window::Broad == 1;
  static constexpr unsigned Never = 1u << 15;
  // Where the windows of the pixels begin, and which rows and columns of them are outside.
  int across, below, places[Turns];
  unsigned outside[Turns];
  // In the strips there is room for what the threads tell each other.
  template <class Strips> __device__ __forceinline__ dnc_rows(Strips strips, int first) {
    across = threadIdx.x % Across * Lanes, below = threadIdx.x / Across;
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
      for (int row = threadIdx.x; row < Rows; row += Threads) {
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
  }
  // Begins to copy the numbers from k on.
  template <class Strip, class Data> __device__ __forceinline__ void bring(Strip strip, Data data, int k) {
    if (!Whole) k += across;
    int tap = k / Window::Inputs, y = tap / Window::Broad, x = tap % Window::Broad;
    int offset = (y * Window::Down * Window::Width + x * Window::Right) * Window::Channels + k % Window::Inputs;
    unsigned bits = 1u << y | 1u << (16 + x);
    if (Window::High * Window::Broad == 1) offset = k, bits = 1u | 1u << 16;
    if ((Whole ? k + across : k) >= Window::Terms) bits = Never;
#pragma unroll
    for (int turn = 0; turn < Turns; ++turn) {
      int row = below + turn * Below, shift = dnc_shift<Depth>(Below % 8 == 0 ? below : row);
      int to = row * Depth + (across / 8 ^ shift) * 8 + across % 8;
      dnc_copy<Lanes * 2>(strip + to, data + (places[turn] + offset), !(outside[turn] & bits));
    }
  }
};
// The sums of 16 rows, `stride` apart, from a lane's own place on.
template <int Wide, class To> __device__ __forceinline__ void dnc_put_sums(To first, const float *sums, int stride) {
  auto to = &*(float*)(first);
#pragma unroll
  for (int j = 0; j < Wide; ++j) {
    *(float2*)(to + j * 8) = make_float2(sums[j * 4], sums[j * 4 + 1]);
    *(float2*)(to + (j * 8 + 8 * stride)) = make_float2(sums[j * 4 + 2], sums[j * 4 + 3]);
  }
}
#endif
