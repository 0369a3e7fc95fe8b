// SIMD vectors of float32: loads, stores, reductions over lanes, exp and GELU. They use the vector extension of GCC and
// Clang, so the same code serves AVX-512, AVX2 and NEON. `Act` is the type of activations: float, or bfloat16 with
// -DBFLOAT16, which `load` and `store` convert from and to float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

// Every row has at least this many elements (each entry point checks), and padded widths are multiples of it. build.py
// has the same number.
constexpr int MIN_WIDTH = 16;
inline int64_t round_up(int64_t count) { return (count + MIN_WIDTH - 1) / MIN_WIDTH * MIN_WIDTH; }

// A vector fills one register: GCC and Clang generate poor code for larger vectors.
#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Half __attribute__((vector_size(2 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

#ifdef __AVX512F__
constexpr Int LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
constexpr Int LANE = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

inline Vec load(const float *from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
inline void store(float *to, Vec v) { std::memcpy(to, &v, sizeof v); }

#ifdef BFLOAT16
struct Act {
    uint16_t bits;
};
constexpr Act ONE = {0x3f80};
inline Vec load(const Act *from) {
    Half half;
    std::memcpy(&half, from, sizeof half);
    return (Vec)(__builtin_convertvector(half, Bits) << 16);
}
inline void store(Act *to, Vec v) { // rounds to nearest even
#ifdef __AVX512BF16__
    auto half = _mm512_cvtneps_pbh((__m512)v);
#else
    Bits wide = (Bits)v;
    Half half = __builtin_convertvector((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16, Half);
#endif
    std::memcpy(to, &half, sizeof half);
}
#else
using Act = float;
constexpr Act ONE = 1.0f;
#endif

// Calls `body(i, done)` for the vectors of a row of `width` elements; i is a vector's first element. If LANES does not
// divide `width`, the last vector overlaps the previous one, and its first `done` lanes were processed before. A body
// that reads one array and writes another may ignore `done`. A sum must mask those lanes with `keep_new_lanes`, and an
// update in place must use `store_new_lanes`. For all other vectors `done` is the constant 0, so masks cost nothing.
using AllNew = std::integral_constant<int, 0>;
template <class F> inline void for_each_vector(int64_t width, F body) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) body(i, AllNew());
    if (i < width) body(width - LANES, int(i + LANES - width));
}
// v, with zero in the lanes that were processed before.
inline Vec keep_new_lanes(Vec v, AllNew) { return v; }
inline Vec keep_new_lanes(Vec v, int done) { return (Vec)((Int)v & (LANE >= done)); }
// Stores v, except for the lanes that were processed before.
template <class E> inline void store_new_lanes(E *to, Vec v, AllNew) { store(to, v); }
template <class E> inline void store_new_lanes(E *to, Vec v, int done) { store(to, LANE >= done ? v : load(to)); }

inline Vec broadcast(float x) { return x - Vec{}; }
template <class W> inline W maximum(W a, W b) { return a > b ? a : b; }

// Reduces all lanes to one number with `combine`, first halves, then quarters, then single lanes.
template <class F> inline float reduce_lanes(Vec v, F combine) {
    typedef float V8 __attribute__((vector_size(32)));
    typedef float V4 __attribute__((vector_size(16)));
    V8 a[2] = {};
    std::memcpy(a, &v, sizeof v);
    V8 eight = LANES == 16 ? combine(a[0], a[1]) : a[0];
    V4 b[2];
    std::memcpy(b, &eight, 32);
    V4 four = combine(b[0], b[1]);
    return combine(combine(four[0], four[1]), combine(four[2], four[3]));
}
inline float sum_lanes(Vec v) {
    return reduce_lanes(v, [](auto a, auto b) { return a + b; });
}
inline float max_lanes(Vec v) {
    return reduce_lanes(v, [](auto a, auto b) { return maximum(a, b); });
}

// exp(x) for x <= 0, as 2^(x log2 e): the integer part goes into the exponent bits, and a polynomial computes the
// fraction in [-1/2, 1/2] with a relative error below 1e-7.
inline Vec exp_nonpositive(Vec x) {
    constexpr float LOG2E = 1.44269504f, SHIFT = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    x = maximum(x, broadcast(-87.0f));                        // keeps the result a normal number
    Vec shifted = x * LOG2E + SHIFT, f = x * LOG2E - (shifted - SHIFT);
    Vec p = 1.32764725e-3f * f + 9.67554189e-3f;
    p = p * f + 5.55071309e-2f;
    p = p * f + 2.40221202e-1f;
    p = p * f + 6.93146944e-1f;
    p = p * f + 1.0f;
    return (Vec)((Int)p + ((Int)shifted << 23));
}

// CDF of the standard normal distribution at x, with density = exp(-x^2 / 2). Formula 7.1.26 of Abramowitz and Stegun;
// the absolute error is below 1.5e-7.
inline Vec normal_cdf(Vec x, Vec density) {
    Vec magnitude = (Vec)((Int)x & 0x7fffffff);
    Vec t = 1.0f / (1.0f + 0.23164189f * magnitude);
    Vec tail = 0.5307027145f * t - 0.7265760135f;
    tail = tail * t + 0.7107068705f;
    tail = tail * t - 0.142248368f;
    tail = (tail * t + 0.127414796f) * t * density;
    return x > 0.0f ? 1.0f - tail : tail;
}
inline Vec gelu(Vec x) { return x * normal_cdf(x, exp_nonpositive(-0.5f * x * x)); }

struct ValueAndSlope {
    Vec value, slope;
};
// GELU and its derivative.
inline ValueAndSlope gelu_with_slope(Vec x) {
    Vec density = exp_nonpositive(-0.5f * x * x), cdf = normal_cdf(x, density);
    return {x * cdf, cdf + x * density * 0.39894228f};
}

} // namespace
