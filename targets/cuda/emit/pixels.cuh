#ifndef DNC_PIXELS
#define DNC_PIXELS
// The arithmetic of dnc.runtime.preprocessing, each operation rounded by itself.
enum { kResize, kHalfPixel, kLetterbox, kCenterCrop };
// Sides of an image and of the network's input, and the short side of what is cropped.
struct dnc_sides { int height, width, tall, broad, shorter; };

// Length of an axis of what the image is brought to, before that is padded or cropped.
template <int Mode> __device__ __forceinline__ long long dnc_target(bool across, dnc_sides s) {
  long long height = s.height, width = s.width;
  if (Mode == kLetterbox) {
    bool wide = __fdiv_rn((float)s.broad, (float)s.width) < __fdiv_rn((float)s.tall, (float)s.height);
    if (wide == across) return across ? s.broad : s.tall;
    long long rest = wide ? height * s.broad / width : width * s.tall / height;
    return rest < 1 ? 1 : rest;
  }
  if (Mode == kCenterCrop) {
    bool tall = width < height;
    if (tall == across) return s.shorter;
    return tall ? height * s.shorter / width : width * s.shorter / height;
  }
  return across ? s.broad : s.tall;
}

struct dnc_place { long long at; bool inside; };
// Which pixel of that an output pixel is, and whether there is one.
template <int Mode> __device__ __forceinline__ dnc_place dnc_placed(int index, int length, long long target) {
  long long at = index;
  bool inside = true;
  if (Mode == kLetterbox) {
    at -= (length - target) / 2;
    inside = at >= 0 && at < target;
  }
  if (Mode == kCenterCrop) at += (target - length) / 2;
  at = at < target - 1 ? at : target - 1;
  return {at < 0 ? 0 : at, inside};
}

struct dnc_sample { int first, second; float rest, weight; bool inside; };
template <int Mode> __device__ __forceinline__ dnc_sample dnc_sampled(bool across, int index, dnc_sides s) {
  int source = across ? s.width : s.height;
  long long target = dnc_target<Mode>(across, s);
  dnc_place place = dnc_placed<Mode>(index, across ? s.broad : s.tall, target);
  dnc_sample sample;
  sample.inside = place.inside;
  if (Mode == kHalfPixel) {
    double ratio = __ddiv_rn((double)source, (double)target);
    double exact = __dmul_rn((double)place.at + 0.5, ratio) - 0.5;
    exact = exact < source - 1 ? exact : (double)(source - 1);
    exact = exact > 0 ? exact : 0;
    sample.first = (int)exact;
    sample.weight = (float)(exact - sample.first);
  } else {
    long long steps = target - 1 < 1 ? 1 : target - 1;
    float position = __fmul_rn((float)place.at, __fdiv_rn((float)(source - 1), (float)steps));
    sample.first = (int)position;
    sample.weight = position - (float)sample.first;
  }
  sample.rest = 1 - sample.weight;
  sample.second = sample.first + 1 < source - 1 ? sample.first + 1 : source - 1;
  if (Mode != kHalfPixel && place.at == target - 1) {
    sample.weight = 0;
    if (across) sample.first = source - 1, sample.rest = 1;
  }
  return sample;
}

// Means, deviations and factors of the channels, one row each; a network with none of them is plain.
template <bool Plain, class Numbers>
__device__ __forceinline__ float dnc_normalized(float value, Numbers numbers, int channel, int channels) {
  if (Plain) return value;
  value = __fdiv_rn(value - numbers[channel], numbers[channels + channel]);
  return __fmul_rn(value, numbers[2 * channels + channel]);
}

// A block of 256 threads makes 32 columns of 8 rows of an image.
template <int Mode, bool Plain, bool Swap, class To, class Image, class Numbers>
__device__ __forceinline__ void dnc_bilinear(To to, Image image, Numbers numbers, float divisor, int height, int width,
                                             int tall, int broad, int shorter, int channels) {
  __shared__ dnc_sample samples[40];
  __shared__ float levels[256];
  int thread = threadIdx.x, column = thread % 32, row = thread / 32;
  dnc_sides sides = {height, width, tall, broad, shorter};
  levels[thread] = Mode == kHalfPixel ? (float)thread : __fdiv_rn((float)thread, divisor);
  if (thread < 32) samples[thread] = dnc_sampled<Mode>(true, blockIdx.x * 32 + thread, sides);
  else if (thread < 40) samples[thread] = dnc_sampled<Mode>(false, blockIdx.y * 8 + thread - 32, sides);
  __syncthreads();
  int x = blockIdx.x * 32 + column, y = blockIdx.y * 8 + row;
  if (x >= broad || y >= tall) return;
  dnc_sample across = samples[column], down = samples[32 + row];
  long long upper = ((long long)blockIdx.z * height + down.first) * width;
  long long lower = ((long long)blockIdx.z * height + down.second) * width;
  long long result = (((long long)blockIdx.z * tall + y) * broad + x) * channels;
  for (int channel = 0; channel < channels; ++channel) {
    int from = Swap && channel < 3 ? 2 - channel : channel;
    float value = 0;
    if (Mode == kLetterbox && !(across.inside && down.inside)) {
      value = __fdiv_rn(127.5f, divisor);
    } else {
      float left = __fmul_rn(levels[image[(upper + across.first) * channels + from]], across.rest);
      float right = __fmul_rn(levels[image[(upper + across.second) * channels + from]], across.weight);
      float above = __fmul_rn(left + right, down.rest);
      left = __fmul_rn(levels[image[(lower + across.first) * channels + from]], across.rest);
      right = __fmul_rn(levels[image[(lower + across.second) * channels + from]], across.weight);
      value = above + __fmul_rn(left + right, down.weight);
      if (Mode == kHalfPixel) value = __fdiv_rn(floorf(value + 0.5f), divisor);
    }
    to[result + channel] = dnc_normalized<Plain>(value, numbers, channel, channels);
  }
}

// The cubic in the pixels of an axis that an output pixel is made of.
struct dnc_cubic { double center, wide; };
__device__ __forceinline__ double dnc_cubic_at(dnc_cubic cubic, int pixel) {
  double x = __ddiv_rn(fabs(pixel + 0.5 - cubic.center), cubic.wide);
  double near = __dmul_rn(__dmul_rn(__dmul_rn(1.5, x) - 2.5, x), x) + 1.0;
  double far = __dmul_rn(__dmul_rn(2.5 - __dmul_rn(0.5, x), x) - 4.0, x) + 2.0;
  return x < 1 ? near : x < 2 ? far : 0.0;
}

// A block of 128 threads makes the row of an output column, or behind all of those of an output row:
// the first pixel, how many there are, and the weight of each, in whole numbers that count `one`.
template <class To>
__device__ __forceinline__ void dnc_cubic_weights(To to, double one, int height, int width, int tall, int broad,
                                                  int shorter, int room) {
  __shared__ double totals[128];
  int thread = threadIdx.x, index = blockIdx.x;
  bool across = index < broad;
  dnc_sides sides = {height, width, tall, broad, shorter};
  int source = across ? width : height;
  long long target = dnc_target<kCenterCrop>(across, sides);
  dnc_place place = dnc_placed<kCenterCrop>(across ? index : index - broad, across ? broad : tall, target);
  double ratio = __ddiv_rn((double)source, (double)target);
  dnc_cubic cubic = {__dmul_rn((double)place.at + 0.5, ratio), ratio > 1 ? ratio : 1};
  double start = cubic.center - 2 * cubic.wide, end = cubic.center + 2 * cubic.wide;
  int first = start > 0 ? (int)start : 0, last = end + 1 < source ? (int)end + 1 : source;
  double sum = 0;
  for (int pixel = first + thread; pixel < last; pixel += 128) sum += dnc_cubic_at(cubic, pixel);
  totals[thread] = sum;
  for (int half = 64; half; half /= 2) {
    __syncthreads();
    if (thread < half) totals[thread] = totals[thread] + totals[thread + half];
  }
  __syncthreads();
  long long row = (long long)index * room;
  if (thread == 0) {
    to[row] = first;
    to[row + 1] = last - first;
  }
  for (int pixel = first + thread; pixel < last; pixel += 128)
    to[row + 2 + pixel - first] = (int)rint(__dmul_rn(__ddiv_rn(dnc_cubic_at(cubic, pixel), totals[0]), one));
}

__device__ __forceinline__ int dnc_pixel(int sum, int bits) {
  int nearest = (sum + (1 << (bits - 1))) >> bits;
  return nearest < 0 ? 0 : nearest > 255 ? 255 : nearest;
}

// A block makes 256 numbers of a row, and then of every `rows`th row that is needed.
template <bool Swap, class To, class Image, class Weights>
__device__ __forceinline__ void dnc_cubic_columns(To to, Image image, Weights weights, int bits, int height, int width,
                                                  int tall, int broad, int channels, int room, int rows) {
  int number = blockIdx.x * 256 + threadIdx.x;
  if (number >= broad * channels) return;
  int x = number / channels, channel = number % channels, from = Swap && channel < 3 ? 2 - channel : channel;
  long long own = (long long)x * room, top = (long long)broad * room, bottom = (long long)(broad + tall - 1) * room;
  int first = weights[own], count = weights[own + 1], begin = weights[top], end = weights[bottom] + weights[bottom + 1];
  for (int y = begin + blockIdx.y; y < end; y += rows) {
    long long line = (long long)blockIdx.z * height + y;
    int sum = 0;
    for (int tap = 0; tap < count; ++tap)
      sum += image[(line * width + first + tap) * channels + from] * weights[own + 2 + tap];
    to[line * broad * channels + number] = (unsigned char)dnc_pixel(sum, bits);
  }
}

// A block makes 256 numbers of a row of the input.
template <bool Plain, class To, class Part, class Weights, class Numbers>
__device__ __forceinline__ void dnc_cubic_rows(To to, Part part, Weights weights, Numbers numbers, float divisor, int bits,
                                               int height, int tall, int broad, int channels, int room) {
  int number = blockIdx.x * 256 + threadIdx.x, y = blockIdx.y;
  if (number >= broad * channels) return;
  long long own = (long long)(broad + y) * room;
  int first = weights[own], count = weights[own + 1], sum = 0;
  for (int tap = 0; tap < count; ++tap)
    sum += part[((long long)blockIdx.z * height + first + tap) * broad * channels + number] * weights[own + 2 + tap];
  float value = __fdiv_rn((float)dnc_pixel(sum, bits), divisor);
  long long line = (long long)blockIdx.z * tall + y;
  to[line * broad * channels + number] = dnc_normalized<Plain>(value, numbers, number % channels, channels);
}
#endif
