// Depthwise convolutions in 8 bits against float32, between 1 x 1 convolutions in 8 bits: a prototype that says whether
// target tvm should have them.
//
//     g++ -O3 -std=c++17 -march=x86-64-v3 benchmarks/depthwise.cpp -o depthwise && ./depthwise       # AVX2
//     g++ -O3 -std=c++17 -march=x86-64-v4 -mavx512vnni benchmarks/depthwise.cpp -o depthwise && ./depthwise
//
// What is timed is all that depends on the choice: how the convolution before writes its sums, and the depthwise one.
//
//     float32   sums -> leaky -> float32; 9 or 25 multiply-adds in float32; leaky, rounded to 8 bits
//     int8      sums -> leaky, rounded to 8 bits; multiply-adds of 8 bits; scaled, leaky, rounded to 8 bits
//
// Channels last, vectors along the channels, tiles of pixels of a row, as in targets/tvm/schedules/depthwise.py. With
// VNNI 8-bit numbers of four rows of the window are multiplied and added at once, without it of two, held in 16 bits.
// One thread, the processor's time, least of many runs in turn. Borders are left out in both: maps have them around.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <vector>

#ifdef __AVX512F__
constexpr int V = 16, QUAD = 4, TILE = 8;
using F = __m512;
using I = __m512i;
static F load(const float *p) { return _mm512_loadu_ps(p); }
static void store(float *p, F v) { _mm512_storeu_ps(p, v); }
static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
static F real(I v) { return _mm512_cvtepi32_ps(v); }
static I ints(const int32_t *p) { return _mm512_loadu_si512(p); }
static F leaky(F v) { return _mm512_max_ps(v, _mm512_mul_ps(v, _mm512_set1_ps(0.1f))); }
static void put(uint8_t *p, F v) {
    const I rounded = _mm512_max_epi32(_mm512_cvtps_epi32(v), _mm512_setzero_si512());
    _mm_storeu_si128((__m128i *)p, _mm512_cvtusepi32_epi8(rounded));
}
static I wide(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
template <int BITS> static I up(I v) { return _mm512_slli_epi32(v, BITS); }
static I either(I a, I b) { return _mm512_or_si512(a, b); }
static I dot(I sum, I data, I weights) { return _mm512_dpbusd_epi32(sum, data, weights); }
static F zerof() { return _mm512_setzero_ps(); }
static I zeroi() { return _mm512_setzero_si512(); }
#else
constexpr int V = 8, QUAD = 2, TILE = 4;
using F = __m256;
using I = __m256i;
static F load(const float *p) { return _mm256_loadu_ps(p); }
static void store(float *p, F v) { _mm256_storeu_ps(p, v); }
static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
static F real(I v) { return _mm256_cvtepi32_ps(v); }
static I ints(const int32_t *p) { return _mm256_loadu_si256((const I *)p); }
static F leaky(F v) { return _mm256_max_ps(v, _mm256_mul_ps(v, _mm256_set1_ps(0.1f))); }
static void put(uint8_t *p, F v) {
    const I rounded = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(words, words));
}
static I wide(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
template <int BITS> static I up(I v) { return _mm256_slli_epi32(v, BITS); }
static I either(I a, I b) { return _mm256_or_si256(a, b); }
static I dot(I sum, I data, I weights) { return _mm256_add_epi32(sum, _mm256_madd_epi16(data, weights)); }
static F zerof() { return _mm256_setzero_ps(); }
static I zeroi() { return _mm256_setzero_si256(); }
#endif

struct Map {
    int channels, size, stride, out, wide;  // `wide`: pixels of a row with its border
};

// Rows `first` to `first` + QUAD of a column of the window, as the bytes (or words) of 32-bit numbers.
template <int K, int FIRST> static I column(const uint8_t *p, long row) {
    constexpr int BITS = 32 / QUAD, COUNT = std::min(QUAD, K - FIRST);
    I found = wide(p + FIRST * row);
    if constexpr (COUNT > 1) found = either(found, up<BITS>(wide(p + (FIRST + 1) * row)));
    if constexpr (COUNT > 2) found = either(found, up<2 * BITS>(wide(p + (FIRST + 2) * row)));
    if constexpr (COUNT > 3) found = either(found, up<3 * BITS>(wide(p + (FIRST + 3) * row)));
    return found;
}

template <int K, int S> [[gnu::noinline]] static void in_float(const Map &m, const float *x, const float *w, const float *shift, uint8_t *y) {
    const long row = (long)m.wide * m.channels;
    for (int oy = 0; oy < m.out; ++oy)
        for (int ox = 0; ox < m.out; ox += TILE)
            for (int c = 0; c < m.channels; c += V) {
                F sums[TILE];
                for (F &sum : sums) sum = load(shift + c);
                for (int ky = 0; ky < K; ++ky) {
                    const float *from = x + (oy * S + ky) * row + (long)ox * S * m.channels + c;
#pragma GCC unroll 8
                    for (int kx = 0; kx < K; ++kx) {
                        const F weight = load(w + (ky * K + kx) * m.channels + c);
#pragma GCC unroll 8
                        for (int t = 0; t < TILE; ++t) sums[t] = fma(load(from + (t * S + kx) * m.channels), weight, sums[t]);
                    }
                }
                for (int t = 0; t < TILE; ++t) put(y + ((long)oy * m.out + ox + t) * m.channels + c, leaky(sums[t]));
            }
}

template <int K, int S, int FIRST> static void rows(const uint8_t *from, long row, int channels, const int32_t *w, I *sums) {
    // A column is made once, for all pixels of the tile that meet it.
#pragma GCC unroll 32
    for (int at = 0; at < (TILE - 1) * S + K; ++at) {
        const I data = column<K, FIRST>(from + at * channels, row);
#pragma GCC unroll 8
        for (int t = 0; t < TILE; ++t)
            if (at - t * S >= 0 && at - t * S < K) sums[t] = dot(sums[t], data, ints(w + (FIRST / QUAD * K + at - t * S) * channels));
    }
    if constexpr (FIRST + QUAD < K) rows<K, S, FIRST + QUAD>(from, row, channels, w, sums);
}

template <int K, int S>
[[gnu::noinline]] static void in_int8(const Map &m, const uint8_t *x, const int32_t *w, const float *scale, const float *shift, uint8_t *y) {
    const long row = (long)m.wide * m.channels;
    for (int oy = 0; oy < m.out; ++oy)
        for (int ox = 0; ox < m.out; ox += TILE)
            for (int c = 0; c < m.channels; c += V) {
                I sums[TILE];
                for (I &sum : sums) sum = zeroi();
                rows<K, S, 0>(x + oy * S * row + (long)ox * S * m.channels + c, row, m.channels, w + c, sums);
                for (int t = 0; t < TILE; ++t)
                    put(y + ((long)oy * m.out + ox + t) * m.channels + c, leaky(fma(real(sums[t]), load(scale + c), load(shift + c))));
            }
}

// How the convolution before ends, of sums that are in the first-level cache.
template <class T> static void before(const Map &m, const int32_t *sums, const float *scale, const float *shift, T *x) {
    for (long pixel = 0; pixel < (long)m.wide * m.wide; ++pixel)
        for (int c = 0; c < m.channels; c += V) {
            const F v = leaky(fma(real(ints(sums + pixel % 4 * m.channels + c)), load(scale + c), load(shift + c)));
            if constexpr (sizeof(T) == 1) put(x + pixel * m.channels + c, v);
            else store(x + pixel * m.channels + c, v);
        }
}

static double seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

// Whether the int8 kernel computes what it should, of numbers and weights that differ everywhere.
template <int K, int S> static bool right(const Map &m, std::vector<uint8_t> &x, std::vector<uint8_t> &y) {
    const int channels = m.channels;
    std::vector<float> scale(channels, 0.01f), shift(channels, 7.0f);
    std::vector<int32_t> packed((K + 3) / QUAD * K * channels, 0);
    auto weight = [&](int ky, int kx, int c) { return (ky * 31 + kx * 17 + c * 7) % 29 - 14; };
    for (size_t at = 0; at < x.size(); ++at) x[at] = at * 97 % 251;
    for (int ky = 0; ky < K; ++ky)
        for (int kx = 0; kx < K; ++kx)
            for (int c = 0; c < channels; ++c) {
                constexpr int BITS = 32 / QUAD;
                constexpr uint32_t MASK = BITS == 8 ? 0xff : 0xffff;
                packed[(ky / QUAD * K + kx) * channels + c] |= (weight(ky, kx, c) & MASK) << (ky % QUAD * BITS);
            }
    in_int8<K, S>(m, x.data(), packed.data(), scale.data(), shift.data(), y.data());
    for (int oy = 0; oy < m.out; ++oy)
        for (int ox = 0; ox < m.out; ++ox)
            for (int c = 0; c < channels; ++c) {
                int sum = 0;
                for (int ky = 0; ky < K; ++ky)
                    for (int kx = 0; kx < K; ++kx)
                        sum += weight(ky, kx, c) * x[((long)(oy * S + ky) * m.wide + ox * S + kx) * channels + c];
                const float real = std::max(sum * 0.01f + 7.0f, 0.1f * (sum * 0.01f + 7.0f));
                const float wanted = std::min(std::max(real, 0.0f), 255.0f);
                // Where a number lies between two, they may be rounded differently.
                if (std::abs(y[((long)oy * m.out + ox) * channels + c] - wanted) > 0.51f) return false;
            }
    return true;
}

template <int K, int S> static void compare(const char *network, int channels, int size) {
    const int whole = (channels + V - 1) / V * V, out = size / S / TILE * TILE;
    const Map m{whole, size, S, out, size + K};
    const long pixels = (long)m.wide * m.wide;
    std::vector<float> reals(pixels * whole + 64), w(K * K * whole, 0.01f), scale(whole, 0.01f), shift(whole, 1.0f);
    std::vector<uint8_t> bytes(pixels * whole + 64), y((long)out * out * whole + 64);
    std::vector<int32_t> sums(4 * whole, 1000), packed((K + 3) / QUAD * K * whole, 0x01010101);
    double least[4] = {1, 1, 1, 1};
    for (int round = 0; round < 60; ++round) {
        double at[5] = {seconds()};
        before(m, sums.data(), scale.data(), shift.data(), reals.data());
        at[1] = seconds();
        in_float<K, S>(m, reals.data(), w.data(), shift.data(), y.data());
        at[2] = seconds();
        before(m, sums.data(), scale.data(), shift.data(), bytes.data());
        at[3] = seconds();
        in_int8<K, S>(m, bytes.data(), packed.data(), scale.data(), shift.data(), y.data());
        at[4] = seconds();
        for (int part = 0; part < 4; ++part) least[part] = std::min(least[part], at[part + 1] - at[part]);
    }
    if (!right<K, S>(m, bytes, y)) std::puts("the next one computes something else");
    std::printf("| %s, %dx%d stride %d, %d, %dx%d | %.0f + %.0f | %.0f + %.0f | %.2f |\n", network, K, K, S, channels, size, size,
                least[0] * 1e6, least[1] * 1e6, least[2] * 1e6, least[3] * 1e6, (least[2] + least[3]) / (least[0] + least[1]));
}

int main() {
    std::puts("| layer | float32, us: before + depthwise | int8 | int8 / float32 |\n| --- | --- | --- | --- |");
    compare<3, 1>("yolo-fastest-1.1", 8, 160);
    compare<3, 2>("yolo-fastest-1.1", 24, 160);
    compare<3, 1>("yolo-fastest-1.1", 32, 80);
    compare<3, 1>("yolo-fastest-1.1", 96, 40);
    compare<3, 1>("yolo-fastest-1.1", 136, 20);
    compare<5, 1>("yolo-fastest-1.1", 120, 20);
    compare<3, 2>("MobileNetV2-Nano", 48, 160);
    compare<3, 1>("MobileNetV2-Nano", 72, 80);
    compare<3, 1>("MobileNetV2-Nano", 288, 20);
    compare<3, 2>("efficientnet-b0", 96, 112);
    compare<3, 1>("efficientnet-b0", 144, 56);
    compare<5, 1>("efficientnet-b0", 192, 28);
    compare<3, 1>("efficientnet-b0", 384, 28);
    compare<5, 1>("efficientnet-b0", 576, 14);
}
