// CUDA C++ on a CPU: what generated kernels use of the language, for g++.
//
// A block's threads are fibers, one after the other; __syncthreads() goes on with the next one. Blocks run one after the
// other. See ../driver.cpp, which has `cuda_barrier`, and checked.h, which looks at what they read and write.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "blocks.h"
#include "checked.h"

#define threadIdx cuda_thread
#define blockIdx cuda_block
#define __syncthreads() cuda_barrier()
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(n)
#define __align__(n) alignas(n)
#define __forceinline__ inline

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct ushort2 { unsigned short x, y; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
struct alignas(4) char4 { signed char x, y, z, w; };
struct alignas(16) longlong2 { long long x, y; };
struct alignas(16) longlong4 { long long x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
inline longlong4 make_longlong4(long long x, long long y, long long z, long long w) { return {x, y, z, w}; }
inline ushort2 make_ushort2(unsigned short x, unsigned short y) { return {x, y}; }
inline ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) { return {x, y, z, w}; }

template <typename T> inline T max(T a, T b) { return a < b ? b : a; }
template <typename T> inline T min(T a, T b) { return b < a ? b : a; }
// As CUDA's: NaN is the other one's.
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
// Places in memory are the numbers in them.
template <typename T, typename M> T max(const Ref<T, M> &a, const Ref<T, M> &b) { return max(T(a), T(b)); }
template <typename T, typename M> T min(const Ref<T, M> &a, const Ref<T, M> &b) { return min(T(a), T(b)); }
template <typename T, typename M, typename N> T max(const Ref<T, M> &a, const Ref<T, N> &b) { return max(T(a), T(b)); }
template <typename T, typename M, typename N> T min(const Ref<T, M> &a, const Ref<T, N> &b) { return min(T(a), T(b)); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
// What is rounded by itself: nvcc makes one operation of no product and sum that are written so, nor does g++ here.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
