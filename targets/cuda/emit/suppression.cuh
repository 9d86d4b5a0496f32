#ifndef DNC_SUPPRESSION
#define DNC_SUPPRESSION
typedef unsigned long long dnc_bits;

// Numbers of the scores over the threshold: each block has a part of both, and counts its own. 256 threads.
template <class Scores, class Threshold, class Numbers, class Counts>
__device__ __forceinline__ void dnc_collect(Scores scores, Threshold confidence, Numbers numbers, Counts counts, int size,
                                            int part) {
  __shared__ unsigned found[1];
  int start = blockIdx.x * part, end = size - start < part ? size : start + part;
  float threshold = confidence[0];
  if (threadIdx.x == 0) found[0] = 0;
  __syncthreads();
  for (int number = start + threadIdx.x; number < end; number += 256)
    if (scores[number] > threshold) numbers[start + atomicAdd(found + 0, 1u)] = number;
  __syncthreads();
  if (threadIdx.x == 0) counts[blockIdx.x] = found[0];
}

// What the best score has least of; of equal scores, the first one. No two scores have the same.
template <class Scores> __device__ __forceinline__ dnc_bits dnc_key(Scores scores, int number) {
  // -0 becomes 0.
  unsigned bits = __float_as_uint(scores[number] + 0.0f);
  unsigned rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (dnc_bits)~rising << 32 | (unsigned)number;
}

// Calls `see` with the key of every number that was collected. 1024 threads.
template <class Scores, class Numbers, class Counts, class See>
__device__ __forceinline__ void dnc_each(Scores scores, Numbers numbers, Counts counts, int parts, int part, See see) {
  for (int one = threadIdx.x / 32; one < parts; one += 32) {
    int count = counts[one];
    for (int place = threadIdx.x % 32; place < count; place += 32)
      see(dnc_key(scores, numbers[(long long)one * part + place]));
  }
}

// Numbers of the best scores, sorted, and how many there are: one block of 1024 threads.
template <int Most, class Scores, class Numbers, class Counts, class Order, class Found>
__device__ __forceinline__ void dnc_sort(Scores scores, Numbers numbers, Counts counts, Order order, Found found, int parts,
                                         int part) {
  __shared__ dnc_bits keys[4096];
  __shared__ dnc_bits last[2];
  __shared__ unsigned bins[256];
  __shared__ unsigned total[2];
  int thread = threadIdx.x;
  if (thread < 2) total[thread] = 0;
  __syncthreads();
  for (int one = thread; one < parts; one += 1024) atomicAdd(total + 0, (unsigned)counts[one]);
  __syncthreads();
  int count = total[0] < Most ? (int)total[0] : Most;
  dnc_bits limit = ~(dnc_bits)0;
  if (total[0] > Most) {
    // The key of the last one that counts, 8 bits at a time.
    dnc_bits known = 0, mask = 0;
    unsigned wanted = Most;
    for (int shift = 56; shift >= 0; shift -= 8) {
      if (thread < 256) bins[thread] = 0;
      __syncthreads();
      dnc_each(scores, numbers, counts, parts, part, [&](dnc_bits key) {
        if ((key & mask) == known) atomicAdd(bins + (unsigned)(key >> shift & 255), 1u);
      });
      __syncthreads();
      if (thread == 0) {
        unsigned before = 0, bin = 0;
        while (before + bins[bin] < wanted) before = before + bins[bin++];
        last[0] = bin;
        last[1] = before;
      }
      __syncthreads();
      dnc_bits bin = last[0];
      wanted -= (unsigned)last[1];
      known |= bin << shift;
      mask |= (dnc_bits)255 << shift;
      bool all = bins[bin] == wanted;
      __syncthreads();
      if (all) break;
    }
    limit = known | ~mask;
  }
  dnc_each(scores, numbers, counts, parts, part, [&](dnc_bits key) {
    if (key <= limit) keys[atomicAdd(total + 1, 1u)] = key;
  });
  int size = 2;
  while (size < count) size *= 2;
  for (int place = count + thread; place < size; place += 1024) keys[place] = ~(dnc_bits)0;
  for (int run = 2; run <= size; run *= 2)
    for (int apart = run / 2; apart; apart /= 2) {
      __syncthreads();
      for (int pair = thread; pair < size / 2; pair += 1024) {
        int low = pair / apart * apart * 2 + pair % apart, high = low + apart;
        dnc_bits one = keys[low], other = keys[high];
        if ((one > other) == !(low & run)) {
          keys[low] = other;
          keys[high] = one;
        }
      }
    }
  __syncthreads();
  for (int place = thread; place < count; place += 1024) order[place] = (int)(unsigned)keys[place];
  if (thread == 0) found[0] = count;
}

struct dnc_box { float x, y, width, height; };
struct dnc_candidate { dnc_box box; int group; };
template <class Boxes>
__device__ __forceinline__ dnc_candidate dnc_candidate_of(Boxes boxes, int number, int places, int classes) {
  // Only those of the same image and class suppress each other.
  int place = number / classes, group = place / places * classes + number % classes;
  long long at = (long long)place * 4;
  return {{boxes[at], boxes[at + 1], boxes[at + 2], boxes[at + 3]}, group};
}

// NaN stays.
__device__ __forceinline__ float dnc_less(float a, float b) { return a < b || a != a ? a : b; }
__device__ __forceinline__ float dnc_more(float a, float b) { return a > b || a != a ? a : b; }
// As dnc.runtime.decoding.overlap computes it, each operation rounded by itself.
template <bool Distance>
__device__ __forceinline__ bool dnc_excessive(dnc_box a, dnc_box b, float threshold, double exponent) {
  float across = dnc_less(a.x + a.width / 2, b.x + b.width / 2) - dnc_more(a.x - a.width / 2, b.x - b.width / 2);
  float down = dnc_less(a.y + a.height / 2, b.y + b.height / 2) - dnc_more(a.y - a.height / 2, b.y - b.height / 2);
  float shared = across < 0 || down < 0 ? 0 : __fmul_rn(across, down);
  float sum = __fmul_rn(a.width, a.height) + __fmul_rn(b.width, b.height) - shared;
  float overlap = shared == 0 || sum == 0 ? 0 : __fdiv_rn(shared, sum);
  if (!(overlap > threshold)) return false;
  if (!Distance) return true;
  float x = a.x - b.x, y = a.y - b.y;
  float distance = __fmul_rn(x, x) + __fmul_rn(y, y);
  x = dnc_more(a.x + a.width / 2, b.x + b.width / 2) - dnc_less(a.x - a.width / 2, b.x - b.width / 2);
  y = dnc_more(a.y + a.height / 2, b.y + b.height / 2) - dnc_less(a.y - a.height / 2, b.y - b.height / 2);
  float diagonal = __fmul_rn(x, x) + __fmul_rn(y, y);
  return diagonal == 0 || overlap - (float)pow((double)__fdiv_rn(distance, diagonal), exponent) > threshold;
}

// Which later ones each would suppress, a bit for each, in words of 64; words of earlier ones alone are left out.
// A block of 64 threads computes the bits of 64 of them for 64 others.
template <bool Distance, class Boxes, class Order, class Found, class Threshold, class Masks>
__device__ __forceinline__ void dnc_overlaps(Boxes boxes, Order order, Found found, Threshold iou, Masks masks,
                                             double exponent, int words, int places, int classes, int blocks) {
  __shared__ dnc_candidate others[64];
  int count = found[0], tiles = (count + 63) / 64, thread = threadIdx.x;
  float threshold = iou[0];
  int column = 0, begin = 0;
  for (int pair = blockIdx.x; pair < tiles * (tiles + 1) / 2; pair += blocks) {
    while (pair > begin + column) begin += ++column;
    int own = (pair - begin) * 64 + thread, other = column * 64;
    __syncthreads();
    if (other + thread < count) others[thread] = dnc_candidate_of(boxes, order[other + thread], places, classes);
    __syncthreads();
    if (own >= count) continue;
    dnc_candidate mine = dnc_candidate_of(boxes, order[own], places, classes);
    int end = count - other < 64 ? count - other : 64;
    dnc_bits bits = 0;
    for (int place = own < other ? 0 : own - other + 1; place < end; ++place) {
      dnc_candidate theirs = others[place];
      if (theirs.group == mine.group && dnc_excessive<Distance>(mine.box, theirs.box, threshold, exponent))
        bits |= (dnc_bits)1 << place;
    }
    masks[own * words + column] = (long long)bits;
  }
}

// Keeps each that no better one suppresses which is kept itself, and writes their rows: one block of 1024 threads.
template <class Boxes, class Scores, class Order, class Found, class Masks, class Rows>
__device__ __forceinline__ void dnc_resolve(Boxes boxes, Scores scores, Order order, Found found, Masks masks, Rows rows,
                                            int most, int words, int places, int classes) {
  __shared__ dnc_bits removed[64];
  __shared__ dnc_bits kept[64];
  __shared__ dnc_bits near[64];
  __shared__ dnc_bits partial[1024];
  __shared__ int before[65];
  int count = found[0], tiles = (count + 63) / 64, thread = threadIdx.x, place = thread % 64;
  if (thread < 64) {
    removed[thread] = 0;
    kept[thread] = 0;
  }
  for (int tile = 0; tile < tiles; ++tile) {
    int first = tile * 64, size = count - first < 64 ? count - first : 64;
    if (thread < size) near[thread] = (dnc_bits)masks[(first + thread) * words + tile];
    __syncthreads();
    if (thread == 0) {
      dnc_bits gone = removed[tile], left = 0;
      for (int one = 0; one < size; ++one)
        if (!(gone >> one & 1)) {
          left |= (dnc_bits)1 << one;
          gone |= near[one];
        }
      kept[tile] = left;
    }
    __syncthreads();
    // 16 parts of the tile, for each of the words behind it.
    int word = tile + 1 + place;
    dnc_bits left = kept[tile], bits = 0;
    for (int one = thread / 64 * 4; word < tiles && one < thread / 64 * 4 + 4; ++one)
      if (left >> one & 1) bits |= (dnc_bits)masks[(first + one) * words + word];
    partial[thread] = bits;
    __syncthreads();
    if (thread < 64 && word < tiles) {
      bits = removed[word];
      for (int part = 0; part < 16; ++part) bits |= partial[part * 64 + thread];
      removed[word] = bits;
    }
  }
  __syncthreads();
  if (thread < 65) {
    int sum = 0;
    for (int tile = 0; tile < thread; ++tile) sum += __popcll(kept[tile]);
    before[thread] = sum;
  }
  __syncthreads();
  for (int one = thread; one < count; one += 1024) {
    dnc_bits left = kept[one / 64];
    if (!(left >> one % 64 & 1)) continue;
    int number = order[one];
    dnc_candidate mine = dnc_candidate_of(boxes, number, places, classes);
    long long row = 7ll * (before[one / 64] + __popcll(left & (((dnc_bits)1 << one % 64) - 1)));
    rows[row] = (float)(mine.group / classes);
    rows[row + 1] = (float)(mine.group % classes);
    rows[row + 2] = scores[number];
    rows[row + 3] = mine.box.x;
    rows[row + 4] = mine.box.y;
    rows[row + 5] = mine.box.width;
    rows[row + 6] = mine.box.height;
  }
  // The row behind the last one.
  if (thread == 0 && before[64] < most) rows[7ll * before[64]] = -1;
}
#endif
