#ifndef DNC_INTEGERS
#define DNC_INTEGERS
// Products by mma.sync of 8-bit numbers and of bits: see integers.py. Two numbers, or 16 bits, lie in each of mma.cuh's.
typedef unsigned short dnc_pair;
template <class From> __device__ __forceinline__ auto dnc_pairs(From from) { return &*(dnc_pair*)(from); }
#ifndef DNC_LANES
// As for float16: 16 x 8 sums of which a lane has 4 each, over 16 pairs. Turing has the same registers in four parts.
template <bool, int Tall, int Wide>
__device__ __forceinline__ void dnc_multiply(int *sums, const unsigned *left, const unsigned *right) {
#pragma unroll
  for (int i = 0; i < Tall; ++i)
#pragma unroll
    for (int j = 0; j < Wide; ++j) {
      int *c = sums + (i * Wide + j) * 4;
      const unsigned *a = left + i * 4, *b = right + j * 2;
#if __CUDA_ARCH__ >= 800
      asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                   "{%0, %1, %2, %3};"
                   : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 750
#pragma unroll
      for (int part = 0; part < 4; ++part)
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+r"(c[part % 2 * 2]), "+r"(c[part % 2 * 2 + 1])
                     : "r"(a[part]), "r"(b[part / 2]));
#endif
    }
}
// The same of bits, of which those that differ are counted.
template <bool, int Tall, int Wide>
__device__ __forceinline__ void dnc_multiply(unsigned *sums, const unsigned *left, const unsigned *right) {
#pragma unroll
  for (int i = 0; i < Tall; ++i)
#pragma unroll
    for (int j = 0; j < Wide; ++j) {
      unsigned *c = sums + (i * Wide + j) * 4;
      const unsigned *a = left + i * 4, *b = right + j * 2;
#define DNC_COUNT(op, a0, a1, a2, a3, b0, b1)                                                                          \
  asm volatile("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32." op ".popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, "     \
               "{%8, %9}, {%0, %1, %2, %3};"                                                                           \
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                                        \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000
      // What NVIDIA's compilers make of the other, with fewer registers.
      DNC_COUNT("and", a[0], a[1], a[2], a[3], ~b[0], ~b[1]);
      DNC_COUNT("and", ~a[0], ~a[1], ~a[2], ~a[3], b[0], b[1]);
#elif __CUDA_ARCH__ >= 800
      DNC_COUNT("xor", a[0], a[1], a[2], a[3], b[0], b[1]);
#elif __CUDA_ARCH__ >= 750
#pragma unroll
      for (int part = 0; part < 4; ++part)
        asm volatile("mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc {%0, %1}, {%2}, {%3}, {%0, %1};"
                     : "+r"(c[part % 2 * 2]), "+r"(c[part % 2 * 2 + 1])
                     : "r"(a[part]), "r"(b[part / 2]));
#endif
#undef DNC_COUNT
    }
}
#endif
template <int Wide, class To> __device__ __forceinline__ void dnc_put_sums(To first, const int *sums, int stride) {
  auto to = &*(int*)(first);
#pragma unroll
  for (int j = 0; j < Wide; ++j) {
    *(int2*)(to + j * 8) = make_int2(sums[j * 4], sums[j * 4 + 1]);
    *(int2*)(to + (j * 8 + 8 * stride)) = make_int2(sums[j * 4 + 2], sums[j * 4 + 3]);
  }
}
template <int Wide, class To>
__device__ __forceinline__ void dnc_put_sums(To first, const unsigned *sums, int stride) {
  dnc_put_sums<Wide>(first, reinterpret_cast<const int *>(sums), stride);
}
#endif
