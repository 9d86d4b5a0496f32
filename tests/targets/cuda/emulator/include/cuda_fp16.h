// float16, by the compiler's own type.
#pragma once
#include "cuda.h"

using half = _Float16;
using __half = half;
struct half2 { half x, y; };
using __half2 = half2;
inline half2 make_half2(half x, half y) { return {x, y}; }
inline float __half2float(half x) { return x; }
inline half __float2half(float x) { return half(x); }
inline half __float2half_rn(float x) { return half(x); }
inline bool __hgt(half a, half b) { return a > b; }
inline bool __hlt(half a, half b) { return a < b; }
inline half hexp(half x) { return half(std::exp(float(x))); }
inline half hlog(half x) { return half(std::log(float(x))); }
inline half hsqrt(half x) { return half(std::sqrt(float(x))); }
inline half htanh(half x) { return half(std::tanh(float(x))); }
inline half hfloor(half x) { return half(std::floor(float(x))); }
inline half hceil(half x) { return half(std::ceil(float(x))); }
inline half hrint(half x) { return half(std::rint(float(x))); }
inline half __habs(half x) { return half(std::fabs(float(x))); }
