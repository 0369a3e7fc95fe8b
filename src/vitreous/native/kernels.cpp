// Encoder and stem on a CPU: some rows or pictures at a time go from one end of a branch to the other inside a core's
// own cache, products and all; what the backward pass needs is written on the way.
//
// Compiled on the user's machine for its own vector unit, and called by native.py, which says what is computed, and by
// muon.py. T is the type of activations, float or bfloat16; sums and the residual stream are float.
//
// Letters: R rows, D their width, M that of the MLP, B pictures, N tokens, H heads, K width of a head, S side,
// C channels.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include <omp.h>
#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

// Vectors are as wide as registers are, for compilers do badly with wider ones. Rows have ROOM at least (those who call
// see to it), and room for rows is a multiple of it where that is said.
constexpr int ROOM = 16;
#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Half __attribute__((vector_size(2 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

inline V load(const float *from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
inline void store(float *to, V v) { std::memcpy(to, &v, sizeof v); }

#ifdef BFLOAT16
struct T {
    uint16_t bits;
};
inline V load(const T *from) {
    Half half;
    std::memcpy(&half, from, sizeof half);
    return (V)(__builtin_convertvector(half, Bits) << 16);
}
inline void store(T *to, V v) {  // to the nearest, ties to even
#ifdef __AVX512BF16__
    auto half = _mm512_cvtneps_pbh((__m512)v);
#else
    Bits wide = (Bits)v;
    Half half = __builtin_convertvector((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16, Half);
#endif
    std::memcpy(to, &half, sizeof half);
}
constexpr uint16_t ONE = 0x3f80;
#else
using T = float;
constexpr float ONE = 1.0f;
#endif

// Runs `body(i, done)` for each block of a row, i its first element. The last block overlaps the one before where
// LANES do not divide D: its first `done` lanes have been worked on, which `fresh` blanks and `replace` leaves alone.
using None = std::integral_constant<int, 0>;
template <class F> inline void row(int64_t D, F body) {
    int64_t i = 0;
    for (; i + LANES <= D; i += LANES) body(i, None());
    if (i < D) body(D - LANES, int(i + LANES - D));
}
#ifdef __AVX512F__
constexpr Int LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
constexpr Int LANE = {0, 1, 2, 3, 4, 5, 6, 7};
#endif
inline V fresh(V v, None) { return v; }
inline V fresh(V v, int done) { return (V)((Int)v & (LANE >= done)); }
template <class E> inline void replace(E *at, V v, None) { store(at, v); }
template <class E> inline void replace(E *at, V v, int done) { store(at, LANE >= done ? v : load(at)); }

inline V all(float x) { return x - V{}; }
template <class W> inline W larger(W a, W b) { return a > b ? a : b; }

// All lanes in one, by `both` of two: halves, quarters, single ones.
template <class F> inline float fold(V v, F both) {
    typedef float V8 __attribute__((vector_size(32)));
    typedef float V4 __attribute__((vector_size(16)));
    V8 a[2] = {};
    std::memcpy(a, &v, sizeof v);
    V8 eight = LANES == 16 ? both(a[0], a[1]) : a[0];
    V4 b[2];
    std::memcpy(b, &eight, 32);
    V4 four = both(b[0], b[1]);
    return both(both(four[0], four[1]), both(four[2], four[3]));
}
inline float total(V v) {
    return fold(v, [](auto a, auto b) { return a + b; });
}
inline float largest(V v) {
    return fold(v, [](auto a, auto b) { return larger(a, b); });
}

// Of x up to 0. 2^x log2(e): its whole part goes into the exponent's bits; for the rest, between -1/2 and 1/2, a
// polynomial with a relative error below 1e-7.
inline V exponential(V x) {
    constexpr float LOG2E = 1.44269504f, SHIFT = 12582912.0f;  // a float that large has no bits for fractions
    x = larger(x, all(-87.0f));
    V shifted = x * LOG2E + SHIFT, f = x * LOG2E - (shifted - SHIFT);
    V p = 1.32764725e-3f * f + 9.67554189e-3f;
    p = p * f + 5.55071309e-2f;
    p = p * f + 2.40221202e-1f;
    p = p * f + 6.93146944e-1f;
    p = p * f + 1.0f;
    return (V)((Int)p + ((Int)shifted << 23));
}

// The share of the normal distribution that lies below x, from exp(-x^2 / 2); Abramowitz and Stegun 7.1.26, whose
// absolute error is below 1.5e-7.
inline V below(V x, V density) {
    V size = (V)((Int)x & 0x7fffffff);
    V t = 1.0f / (1.0f + 0.23164189f * size);
    V tail = 0.5307027145f * t - 0.7265760135f;
    tail = tail * t + 0.7107068705f;
    tail = tail * t - 0.142248368f;
    tail = (tail * t + 0.127414796f) * t * density;
    return x > 0.0f ? 1.0f - tail : tail;
}
inline V gelu(V x) { return x * below(x, exponential(-0.5f * x * x)); }
struct Curve {
    V value, slope;
};
inline Curve gelu_curve(V x) {
    V density = exponential(-0.5f * x * x), share = below(x, density);
    return {x * share, share + x * density * 0.39894228f};
}

// Dropout. What is left out is a hash of a seed and an element's place (C. Wellons' lowbias32), so that the backward
// pass finds it again; nothing is where `rate` is 0.
struct Dropout {
    uint32_t seed, below;
    float scale;
    Dropout(int64_t seed, float rate)
        : seed(uint32_t(seed)), below(uint32_t(double(rate) * 4294967296.0)), scale(1.0f / (1.0f - rate)) {}
    V operator()(V v, int64_t place) const {
        if (!below) return v;
        Bits x = ((Bits)LANE + uint32_t(place)) * 0x9e3779b1u + seed;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        x ^= x >> 16;
        return x >= below ? v * scale : all(0.0f);
    }
};

// Runs `body(at, count)` on [first, last), `most` at a time or somewhat fewer, as evenly as can be.
template <class F> void pieces(int64_t first, int64_t last, int64_t most, F body) {
    int64_t times = (last - first + most - 1) / most;
    for (int64_t i = 0; i < times; i++) {
        int64_t at = first + (last - first) * i / times;
        body(at, first + (last - first) * (i + 1) / times - at);
    }
}

// Runs `body(each)` on every thread; its `each(work)` then runs `work(at, some, sums)` on pieces of [0, count), `most` at
// a time. A thread takes the next share when it is done with one, large shares first, for cores are seldom equally fast.
// `sums` is a share's own room for `width` sums, which are added up in order, so that a run can be repeated to the bit.
template <class F> void share(int64_t count, int64_t most, int64_t width, float *sum, F body) {
    int64_t threads = omp_get_max_threads(), given = 0;
    std::vector<int64_t> starts{0};
    for (int64_t eighths : {5, 2, 1})  // of what a thread would get of equal shares
        for (int64_t t = 0; t < threads; t++) {
            given += eighths;
            starts.push_back(count * given / (8 * threads));
        }
    std::vector<std::vector<float>> sums(starts.size() - 1);
    std::atomic<size_t> next{0};
#pragma omp parallel
    {
        body([&](auto work) {
            for (size_t i; (i = next++) < sums.size();) {
                sums[i].resize(width);
                pieces(starts[i], starts[i + 1], most,
                       [&](int64_t at, int64_t some) { work(at, some, sums[i].data()); });
            }
        });
#pragma omp barrier
        int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
        int64_t from = width * me / all, to = width * (me + 1) / all;
        for (int64_t i = from; i < to; i++) sum[i] = sums[0][i];
        for (size_t s = 1; s < sums.size(); s++)
            for (int64_t i = from; i < to; i++) sum[i] += sums[s][i];
    }
}

struct Statistics {
    float mean, rstd;
};

// Of a row whose block at i is `x(i)`; about its first element, lest digits cancel.
template <class X> inline Statistics statistics(int64_t D, float eps, X x) {
    V sum = {}, square = {};
    float about = x(0)[0];
    row(D, [&](int64_t i, auto done) {
        V v = fresh(x(i) - about, done);
        sum += v;
        square += v * v;
    });
    float mean = total(sum) / D;
    return {about + mean, 1.0f / __builtin_sqrtf(std::max(total(square) / D - mean * mean, 0.0f) + eps)};
}

// Through a layer norm of a row, `normal(i)` before weight and bias: `dh(i)` is its output's gradient, `take(i, done, dx)`
// gets that of what came in.
template <class X, class G, class F>
inline void norm_backward(int64_t D, float rstd, const float *weight, float *dweight, float *dbias, X normal, G dh,
                          F take) {
    V a = {}, b = {};
    row(D, [&](int64_t i, auto done) {
        V g = fresh(dh(i), done), product = g * normal(i), w = load(weight + i);
        store(dbias + i, load(dbias + i) + g);
        store(dweight + i, load(dweight + i) + product);
        a += g * w;
        b += product * w;
    });
    float mean_a = total(a) / D, mean_b = total(b) / D;
    row(D, [&](int64_t i, auto done) {
        take(i, done, (dh(i) * load(weight + i) - mean_a - normal(i) * mean_b) * rstd);
    });
}

// ---- products, inside a core's own cache

// What products are made of, 32 bits: a float, or two bfloat16 that are neighbours along the dimension summed over.
typedef int32_t Unit;
#ifdef BFLOAT16
constexpr int PAIR = 2;
#else
constexpr int PAIR = 1;
#endif
// Sums held in registers at a time, and how many of them side by side.
#ifdef __AVX512F__
constexpr int HELD = 24, ABREAST = 4;
#else
constexpr int HELD = 12, ABREAST = 2;
#endif

inline V multiply_add(V sum, Unit a, Int b) {
    Int left = a - Int{};
#if defined(BFLOAT16) && defined(__AVX512BF16__)
    return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)b);
#elif defined(BFLOAT16)
    constexpr int HIGH = -65536;
    return sum + (V)(left << 16) * (V)(b << 16) + (V)(left & HIGH) * (V)(b & HIGH);
#else
    return sum + (V)left * (V)b;
#endif
}

// Units [rows, depth], `am` apart along rows and `ai` along depth, which may be cut into `lines`, `jump` apart.
struct Left {
    const Unit *at;
    int64_t am, ai, lines = 1, jump = 0;
};

// c [M, W * LANES] = a [M, depth] b [depth, W * LANES], or that added to it; rows of b and c are `bi` and `cm` apart.
template <bool ADD, int W, int M>
void tile(Left a, const Unit *b, int64_t bi, int64_t depth, float *c, int64_t cm) {
    V sums[M][W] = {};
    for (int64_t line = 0; line < a.lines; line++, a.at += a.jump)
        for (int64_t i = 0; i < depth; i++, b += bi) {
            Int right[W];
#pragma GCC unroll 4
            for (int w = 0; w < W; w++) std::memcpy(&right[w], b + w * LANES, sizeof right[w]);
#pragma GCC unroll 24
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
                for (int w = 0; w < W; w++)
                    sums[m][w] = multiply_add(sums[m][w], a.at[m * a.am + i * a.ai], right[w]);
        }
#pragma GCC unroll 24
    for (int m = 0; m < M; m++)
#pragma GCC unroll 4
        for (int w = 0; w < W; w++) {
            float *at = c + m * cm + w * LANES;
            store(at, ADD ? load(at) + sums[m][w] : sums[m][w]);
        }
}

// The same for any number of rows, `some` of them at a time.
template <bool ADD, int W, int M>
void tiles(int64_t rows, int64_t some, Left a, const Unit *b, int64_t bi, int64_t depth, float *c, int64_t cm) {
    if constexpr (M > 1)
        if (some < M) return tiles<ADD, W, M - 1>(rows, some, a, b, bi, depth, c, cm);
    for (; rows >= M; rows -= M, a.at += M * a.am, c += M * cm) tile<ADD, W, M>(a, b, bi, depth, c, cm);
    if constexpr (M > 1)
        if (rows) tiles<ADD, W, M - 1>(rows, rows, a, b, bi, depth, c, cm);
}

// c [rows, bi] = a [rows, depth] b [depth, bi], or that added to it; LANES divide bi, `depth` is that of a line.
template <bool ADD = false>
void product(int64_t rows, Left a, const Unit *b, int64_t bi, int64_t depth, float *c) {
    for (int64_t left = bi / LANES; left > 0;) {
        int64_t pieces = (left + ABREAST - 1) / ABREAST, width = (left + pieces - 1) / pieces;
        int64_t most = std::min<int64_t>(HELD / width, 12), times = (rows + most - 1) / most;
        int64_t some = (rows + times - 1) / times, at = bi - left * LANES;  // as evenly as can be
        auto go = [&](auto tiles) { tiles(rows, some, a, b + at, bi, depth, c + at, bi); };
        if (width == 1)
            go(tiles<ADD, 1, 12>);
        else if (width == 2)
            go(tiles<ADD, 2, HELD / 2>);
        else if constexpr (ABREAST > 2)
            go(width == 3 ? tiles<ADD, 3, HELD / 3> : tiles<ADD, 4, HELD / 4>);
        left -= width;
    }
}

#ifdef BFLOAT16
inline Bits interleave(Half low, Half high) {
#ifdef __AVX512BF16__
    constexpr Bits ORDER = ((Bits)LANE + 32u) << 16 | (Bits)LANE;  // a unit takes lane i of the first and of the second
    return (Bits)_mm512_permutex2var_epi16(_mm512_castsi256_si512((__m256i)low), (__m512i)ORDER,
                                           _mm512_castsi256_si512((__m256i)high));
#else
    return __builtin_convertvector(low, Bits) | __builtin_convertvector(high, Bits) << 16;
#endif
}
#endif

// Two rows of `width` T to units of both; the second may be missing. For floats the first alone.
inline void pair(const T *first, const T *second, int64_t width, Unit *to) {
    row(width, [&](int64_t c, auto) {
#ifdef BFLOAT16
        Half low, high = {};
        std::memcpy(&low, first + c, sizeof low);
        if (second) std::memcpy(&high, second + c, sizeof high);
        Bits both = interleave(low, high);
        std::memcpy(to + c, &both, sizeof both);
#else
        store(reinterpret_cast<float *>(to) + c, load(first + c));
#endif
    });
}

// Rows of `width` T to units along the rows: [N / PAIR, rounded up, room].
void pair_rows(const T *from, int64_t N, int64_t width, Unit *to, int64_t room) {
    for (int64_t n = 0; n < N; n += PAIR)
        pair(from + n * width, n + 1 < N ? from + (n + 1) * width : nullptr, width, to + n / PAIR * room);
}

// Rows of `width` T, of which `depth` units are wanted, to their transpose: [depth, room].
void turn(const T *from, int64_t N, int64_t width, int64_t depth, Unit *to, int64_t room) {
    const Unit *units = reinterpret_cast<const Unit *>(from);
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < depth; i++) to[i * room + n] = units[n * (width / PAIR) + i];
}

inline int64_t rounded(int64_t count) { return (count + ROOM - 1) / ROOM * ROOM; }

inline int64_t units(int64_t count) { return (count + PAIR - 1) / PAIR; }

inline Left by_row(const T *rows, int64_t width) {
    return {reinterpret_cast<const Unit *>(rows), width / PAIR, 1};
}

// The weight [out, in] of a linear layer as units: `turned` along `in` for the forward pass, [in / PAIR, out], and else
// along `out`, [out / PAIR, in]; both rounded up.
struct Weight {
    int64_t depth, width;
    std::vector<Unit> at;
    Weight(const float *w, int64_t out, int64_t in, bool turned) {
        int64_t wide = rounded(in);
        std::vector<T> rows(out * wide);
        for (int64_t o = 0; o < out; o++)
            row(in, [&](int64_t i, auto) { store(&rows[o * wide + i], load(w + o * in + i)); });
        depth = units(turned ? in : out);
        width = turned ? rounded(out) : wide;
        at.resize(depth * width);
        if (turned)
            turn(rows.data(), out, wide, depth, at.data(), width);
        else
            pair_rows(rows.data(), out, wide, at.data(), width);
    }
};

// The weight [C, I, 3, 3] of a convolution as units, for each tap [rows / PAIR, columns], both rounded up: rows are I
// and columns C, or, `turned` for the backward pass, rows are C and columns I, and taps in reverse.
std::vector<Unit> taps(const float *w, int64_t C, int64_t I, bool turned) {
    int64_t rows = turned ? C : I, columns = turned ? I : C, depth = units(rows), across = rounded(columns);
    std::vector<Unit> found(9 * depth * across);
#pragma omp parallel for
    for (int64_t tap = 0; tap < 9; tap++) {
        std::vector<float> line(across);
        std::vector<T> half(rows * across);
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = 0; c < columns; c++)
                line[c] = turned ? w[(r * I + c) * 9 + 8 - tap] : w[(c * I + r) * 9 + tap];
            for (int64_t c = 0; c < across; c += LANES) store(&half[r * across + c], load(&line[c]));
        }
        pair_rows(half.data(), rows, across, &found[tap * depth * across], across);
    }
    return found;
}

// y [rows, rounded up] = x [rows, `room` apart] times that weight.
inline void product(int64_t rows, const T *x, int64_t room, const Weight &w, float *y) {
    product(rows, by_row(x, room), w.at.data(), w.width, w.depth, y);
}

// Adds to the gradient of a weight, [out, in rounded up], what rows of dy and x, `dy_room` and `x_room` apart, have in
// common, and to that of its bias, [out rounded up], the rows of dy; `room` is for both as units.
void add_products(int64_t rows, const T *dy, int64_t out, int64_t dy_room, const T *x, int64_t x_room, Unit *room,
                  float *dw, float *dbias) {
    int64_t high = rounded(dy_room), wide = rounded(x_room);
    Unit *left = room, *right = room + units(rows) * high;
    pair_rows(dy, rows, dy_room, left, high);
    pair_rows(x, rows, x_room, right, wide);
    product<true>(out, {left, 1, high}, right, wide, units(rows), dw);
    T ones[PAIR];
    for (T &one : ones) one = T{ONE};
    product<true>(1, {reinterpret_cast<const Unit *>(ones), 0, 0}, left, high, units(rows), dbias);
}

// Of a row of N scores, whose room is whole registers; zeros follow.
void softmax(float *scores, T *weights, int64_t N) {
    int64_t last = (N - 1) / LANES * LANES;
    auto inside = LANE < int(N - last);
    V end = inside ? load(scores + last) : all(-INFINITY), most = end, sum = {};
    for (int64_t c = 0; c < last; c += LANES) most = larger(most, load(scores + c));
    float peak = largest(most);
    for (int64_t c = 0; c < last; c += LANES) {
        V v = exponential(load(scores + c) - peak);
        store(scores + c, v);
        sum += v;
    }
    end = inside ? exponential(end - peak) : all(0.0f);
    float factor = 1.0f / total(sum + end);
    for (int64_t c = 0; c < last; c += LANES) store(weights + c, load(scores + c) * factor);
    store(weights + last, end * factor);
    for (int64_t c = last + LANES; c < rounded(N); c += LANES) store(weights + c, V{});
}

// ds = p (dp - the row's mean of dp by p); zeros in `p` stay.
void softmax_backward(const T *p, const float *dp, T *ds, int64_t N) {
    V sum = {};
    for (int64_t c = 0; c < N; c += LANES) sum += load(p + c) * load(dp + c);
    float mean = total(sum);
    for (int64_t c = 0; c < rounded(N); c += LANES) store(ds + c, load(p + c) * (load(dp + c) - mean));
}

// Where things of a picture's heads lie; each goes over memory in its own order, which a core reads ahead.
struct Picture {
    int64_t b, N, H, K, width;
    int64_t joined(int64_t n, int64_t part, int64_t h) const { return (((b * N + n) * 3 + part) * H + h) * K; }
    int64_t statistics(int64_t n, int64_t part, int64_t h) const { return ((b * N + n) * 2 + part) * H + h; }
    int64_t apart(int64_t part, int64_t n, int64_t h) const { return ((part * H + h) * N + n) * width; }
};

// q, k and v of all heads, `apart`, from qkv: q and k normalised where there are `weights` [2, 2, K] (of q and k: weight
// and bias), q scaled. `stats` are found where `eps` is given, else known.
void split_heads(Picture at, const T *qkv, Statistics *stats, const float *weights, float scale, const float *eps,
                 T *split) {
    int64_t K = at.K;
    for (int64_t n = 0; n < at.N; n++)
        for (int64_t part = 0; part < 3; part++)
            for (int64_t h = 0; h < at.H; h++) {
                const T *from = qkv + at.joined(n, part, h);
                T *to = split + at.apart(part, n, h);
                float factor = part == 0 ? scale : 1.0f;
                auto x = [&](int64_t i) { return load(from + i); };
                if (part == 2 || !weights) {
                    row(K, [&](int64_t i, auto) { store(to + i, x(i) * factor); });
                    continue;
                }
                const float *weight = weights + 2 * part * K;
                Statistics &s = stats[at.statistics(n, part, h)];
                if (eps) s = statistics(K, *eps, x);
                row(K, [&](int64_t i, auto) {
                    V normal = (x(i) - s.mean) * s.rstd;
                    store(to + i, (normal * load(weight + i) + load(weight + K + i)) * factor);
                });
            }
}

// Layer norm of rows x [rows, D] to h [rows, D]; `stats` are found where `eps` is given, else known.
void normalize(int64_t rows, int64_t D, const float *x, Statistics *stats, const float *weight, const float *bias,
               const float *eps, float *h) {
    for (int64_t r = 0; r < rows; r++, x += D, h += D, stats++) {
        if (eps) *stats = statistics(D, *eps, [&](int64_t i) { return load(x + i); });
        row(D, [&](int64_t i, auto) {
            store(h + i, (load(x + i) - stats->mean) * stats->rstd * load(weight + i) + load(bias + i));
        });
    }
}

// The same, to h [rows, `room` apart] and, before weight and bias, to `normal` [rows, D], which is kept.
void normalize(int64_t rows, int64_t D, const float *x, float *rstd, T *normal, const float *weight, const float *bias,
               float eps, T *h, int64_t room) {
    for (int64_t r = 0; r < rows; r++, x += D, h += room, rstd++, normal += D) {
        Statistics s = statistics(D, eps, [&](int64_t i) { return load(x + i); });
        *rstd = s.rstd;
        row(D, [&](int64_t i, auto) {
            V v = (load(x + i) - s.mean) * s.rstd;
            store(normal + i, v);
            store(h + i, v * load(weight + i) + load(bias + i));
        });
    }
}

// h once more, from what was kept.
void normalize_again(int64_t rows, int64_t D, const T *normal, const float *weight, const float *bias, T *h,
                     int64_t room) {
    for (int64_t r = 0; r < rows; r++, h += room, normal += D)
        row(D, [&](int64_t i, auto) { store(h + i, load(normal + i) * load(weight + i) + load(bias + i)); });
}

// Rows worked on at a time: their products are then large enough, and lie in the cache.
constexpr int64_t SOME_ROWS = 160;

// What a layer has, in the order of native.py's `layers`, which is that of `sums` in the backward passes below.
struct Layer {
    const float *qkv, *proj, *qkv_bias, *proj_bias, *norm1, *norm1_bias, *head_norms[4], *fc1, *fc2, *fc1_bias,
        *fc2_bias, *norm2, *norm2_bias;
};
struct Sizes {
    int64_t B, N, H, K, M;
};

// What attention and the MLP of a layer keep for their backward passes, cut from memory at `at`.
struct Kept {
    float *rstd1, *rstd2;
    Statistics *head_stats;
    T *normal1, *qkv, *p, *merged, *normal2, *slope, *g;
    Kept(char *&at, Sizes s) {
        auto cut = [&](auto *&piece, int64_t count) {
            piece = reinterpret_cast<std::remove_reference_t<decltype(piece)>>(at);
            at += (count * sizeof *piece + 63) / 64 * 64;
        };
        int64_t R = s.B * s.N, D = s.H * s.K;
        cut(rstd1, R), cut(rstd2, R), cut(head_stats, R * 2 * s.H);
        cut(normal1, R * D), cut(qkv, R * 3 * D), cut(p, R * s.H * rounded(s.N)), cut(merged, R * D);
        cut(normal2, R * D), cut(slope, R * rounded(s.M)), cut(g, R * rounded(s.M));
    }
};

// Weights and biases of the norms of q and k as one row [4 K], which is empty where a layer has none.
std::vector<float> head_norms(const Layer &w, int64_t K) {
    std::vector<float> found;
    for (const float *each : w.head_norms)
        if (each) found.insert(found.end(), each, each + K);
    return found;
}

}  // namespace

extern "C" {

// x [B, N, D] plus attention of its layer norm: the first `wanted` tokens of each picture, to `out` [B, wanted, D], which
// may be x where all are wanted. Kept are `rstd` [B, N] and `normal` [B, N, D] of the norm; qkv [B, N, 3, H, K];
// `head_stats` [B, N, 2, H], those of the norms of q and k, if they have `head_norms`; p [B, H, wanted, N rounded up], attention's weights and zeros; `merged` [B, wanted, H, K].
void attention(const float *x, float *out, float *rstd, T *normal, T *qkv, Statistics *head_stats, T *p, T *merged,
               const float *norm, const float *norm_bias, const float *weight, const float *bias,
               const float *head_norms, const float *proj, const float *proj_bias, int64_t B, int64_t N,
               int64_t wanted, int64_t H, int64_t K, float scale, float eps) {
    int64_t D = H * K, wide = rounded(D), width = rounded(K), length = rounded(N), most = std::max<int64_t>(1, SOME_ROWS / N);
    const Weight joined(weight, 3 * D, D, true), back(proj, D, D, true);
    share(B, most, 0, nullptr, [&](auto each) {
        // What pads rows and columns stays zero from picture to picture.
        std::vector<T> h(most * N * wide), split(3 * H * N * width);
        std::vector<Unit> keys(width / PAIR * length), values(units(N) * width);
        std::vector<float> y(most * N * joined.width), scores(wanted * length), heads(H * N * width);
        each([&](int64_t start, int64_t pictures, float *) {
            int64_t rows = pictures * N, from = start * N;
            normalize(rows, D, x + from * D, rstd + from, normal + from * D, norm, norm_bias, eps, h.data(), wide);
            product(rows, h.data(), wide, joined, y.data());
            for (int64_t r = 0; r < rows; r++)
                row(3 * D, [&](int64_t i, auto) {
                    store(qkv + (from + r) * 3 * D + i, load(&y[r * joined.width + i]) + load(bias + i));
                });
            for (int64_t b = start; b < start + pictures; b++) {
                Picture at{b, N, H, K, width};
                split_heads(at, qkv, head_stats, head_norms, scale, &eps, split.data());
                for (int64_t h = 0; h < H; h++) {
                    const T *q = &split[at.apart(0, 0, h)], *k = &split[at.apart(1, 0, h)], *v = &split[at.apart(2, 0, h)];
                    T *own = p + (b * H + h) * wanted * length;
                    turn(k, N, width, width / PAIR, keys.data(), length);
                    product(wanted, by_row(q, width), keys.data(), length, width / PAIR, scores.data());
                    for (int64_t n = 0; n < wanted; n++) softmax(&scores[n * length], own + n * length, N);
                    pair_rows(v, N, width, values.data(), width);
                    product(wanted, by_row(own, length), values.data(), width, units(N), &heads[at.apart(0, 0, h)]);
                }
                for (int64_t n = 0; n < wanted; n++)
                    for (int64_t h = 0; h < H; h++) {
                        const float *head = &heads[at.apart(0, n, h)];
                        T *to = merged + ((b * wanted + n) * H + h) * K;
                        row(K, [&](int64_t i, auto) { store(to + i, load(head + i)); });
                    }
            }
            product(pictures * wanted, merged + start * wanted * D, D, back, y.data());
            for (int64_t b = 0; b < pictures; b++)
                for (int64_t n = 0; n < wanted; n++) {
                    const float *skip = x + (from + b * N + n) * D, *branch = &y[(b * wanted + n) * wide];
                    float *to = out + ((start + b) * wanted + n) * D;
                    row(D, [&](int64_t i, auto done) {
                        replace(to + i, load(skip + i) + load(branch + i) + load(proj_bias + i), done);
                    });
                }
        });
    });
}

// From dout [B, wanted, D] to dx [B, N, D], which may be the same where all are wanted. `sums`: the gradients of
// `weight` [3 D, D] and `proj` [D, D], rows rounded up; of `bias` and proj's, rounded up; of the norm's weight and bias;
// of `head_norms`.
void attention_backward(const float *dout, float *dx, const float *rstd, const T *normal, const T *qkv,
                        Statistics *head_stats, const T *p, const T *merged, const float *norm,
                        const float *norm_bias, const float *weight, const float *head_norms, const float *proj,
                        float *sums, int64_t B, int64_t N, int64_t wanted, int64_t H, int64_t K, float scale) {
    int64_t D = H * K, wide = rounded(D), width = rounded(K), length = rounded(N), most = std::max<int64_t>(1, SOME_ROWS / N);
    const Weight joined(weight, 3 * D, D, false), back(proj, D, D, false);
    share(B, most, 4 * D * wide + rounded(3 * D) + wide + 2 * D + 4 * K, sums, [&](auto each) {
        std::vector<T> half(most * N * wide), h(most * N * wide), dqkv(most * N * 3 * D);
        std::vector<T> split(3 * H * N * width), grad(wanted * width), ds(wanted * length);
        std::vector<Unit> values(width / PAIR * length), right(units(N) * width), left(units(N) * length);
        std::vector<Unit> room(units(most * N) * (rounded(3 * D) + wide));
        std::vector<float> y(most * N * wide), scores(wanted * length), d(3 * H * N * width);
        each([&](int64_t start, int64_t pictures, float *dweight) {
            float *dproj = dweight + 3 * D * wide, *dbias = dproj + D * wide, *dproj_bias = dbias + rounded(3 * D);
            float *dnorm = dproj_bias + wide, *dhead_norms = dnorm + 2 * D;
            int64_t rows = pictures * N, out_rows = pictures * wanted, from = start * N;
            const float *given = dout + start * wanted * D;
            for (int64_t r = 0; r < out_rows; r++)
                row(D, [&](int64_t i, auto) { store(&half[r * wide + i], load(given + r * D + i)); });
            add_products(out_rows, half.data(), D, wide, merged + start * wanted * D, D, room.data(), dproj, dproj_bias);
            product(out_rows, half.data(), wide, back, y.data());
            for (int64_t b = start; b < start + pictures; b++) {
                Picture at{b, N, H, K, width};
                split_heads(at, qkv, head_stats, head_norms, scale, nullptr, split.data());
                for (int64_t h = 0; h < H; h++) {
                    int64_t parts[3] = {at.apart(0, 0, h), at.apart(1, 0, h), at.apart(2, 0, h)};
                    const T *own = p + (b * H + h) * wanted * length;
                    for (int64_t n = 0; n < wanted; n++) {
                        const float *mine = &y[((b - start) * wanted + n) * wide + h * K];
                        row(K, [&](int64_t i, auto) { store(&grad[n * width + i], load(mine + i)); });
                    }
                    turn(&split[parts[2]], N, width, width / PAIR, values.data(), length);
                    product(wanted, by_row(grad.data(), width), values.data(), length, width / PAIR, scores.data());
                    for (int64_t n = 0; n < wanted; n++)
                        softmax_backward(own + n * length, &scores[n * length], &ds[n * length], N);
                    // dq = ds k, dk = transposed ds q, dv = transposed p times the gradient
                    pair_rows(&split[parts[1]], N, width, right.data(), width);
                    product(wanted, by_row(ds.data(), length), right.data(), width, units(N), &d[parts[0]]);
                    pair_rows(&split[parts[0]], wanted, width, right.data(), width);
                    pair_rows(ds.data(), wanted, length, left.data(), length);
                    product(N, {left.data(), 1, length}, right.data(), width, units(wanted), &d[parts[1]]);
                    pair_rows(grad.data(), wanted, width, right.data(), width);
                    pair_rows(own, wanted, length, left.data(), length);
                    product(N, {left.data(), 1, length}, right.data(), width, units(wanted), &d[parts[2]]);
                }
                for (int64_t n = 0; n < N; n++)
                    for (int64_t part = 0; part < 3; part++)
                        for (int64_t h = 0; h < H; h++) {
                            const T *before = qkv + at.joined(n, part, h);
                            const float *own = &d[at.apart(part, n, h)];
                            T *to = &dqkv[at.joined(n, part, h) - from * 3 * D];
                            float *dhead = dhead_norms + 2 * part * K;
                            float factor = part == 0 ? scale : 1.0f;
                            auto dy = [&](int64_t i) { return load(own + i) * factor; };
                            auto take = [&](int64_t i, auto, V v) { store(to + i, v); };
                            if (part == 2 || !head_norms)
                                row(K, [&](int64_t i, auto done) { take(i, done, dy(i)); });
                            else {
                                Statistics s = head_stats[at.statistics(n, part, h)];
                                norm_backward(
                                    K, s.rstd, head_norms + 2 * part * K, dhead, dhead + K,
                                    [&](int64_t i) { return (load(before + i) - s.mean) * s.rstd; }, dy, take);
                            }
                        }
            }
            normalize_again(rows, D, normal + from * D, norm, norm_bias, h.data(), wide);
            add_products(rows, dqkv.data(), 3 * D, 3 * D, h.data(), wide, room.data(), dweight, dbias);
            product(rows, dqkv.data(), 3 * D, joined, y.data());
            for (int64_t r = 0; r < rows; r++) {
                const float *skip = given + (r / N * wanted + r % N) * D;
                const T *before = normal + (from + r) * D;
                float *to = dx + (from + r) * D;
                bool skipped = r % N < wanted;
                norm_backward(
                    D, rstd[from + r], norm, dnorm, dnorm + D, [&](int64_t i) { return load(before + i); },
                    [&](int64_t i) { return load(&y[r * wide + i]); },
                    [&](int64_t i, auto done, V v) { replace(to + i, skipped ? v + load(skip + i) : v, done); });
            }
        });
    });
}

// x [R, D] plus the MLP of its layer norm, to `out`, which may be x; dropout inside, by the first seed, and of what is
// added. Kept are `rstd` [R] and `normal` [R, D] of the norm; g [R, M rounded up], the GELU after dropout, and its slope
// after the same.
void mlp(const float *x, float *out, float *rstd, T *normal, T *slope, T *g, const float *norm,
         const float *norm_bias, const float *fc1, const float *bias1, const float *fc2, const float *bias2, int64_t R,
         int64_t D, int64_t M, float eps, int64_t seed1, int64_t seed2, float rate) {
    int64_t wide = rounded(D), deep = rounded(M);
    Dropout inside(seed1, rate), after(seed2, rate);
    const Weight up(fc1, M, D, true), down(fc2, D, M, true);
    share(R, SOME_ROWS, 0, nullptr, [&](auto each) {
        std::vector<T> h(SOME_ROWS * wide);
        std::vector<float> y(SOME_ROWS * std::max(wide, deep));
        each([&](int64_t from, int64_t rows, float *) {
            normalize(rows, D, x + from * D, rstd + from, normal + from * D, norm, norm_bias, eps, h.data(), wide);
            product(rows, h.data(), wide, up, y.data());
            for (int64_t r = 0; r < rows; r++) {
                T *value = g + (from + r) * deep, *steep = slope + (from + r) * deep;
                row(M, [&](int64_t i, auto) {
                    Curve curve = gelu_curve(load(&y[r * deep + i]) + load(bias1 + i));
                    store(value + i, inside(curve.value, (from + r) * M + i));
                    store(steep + i, inside(curve.slope, (from + r) * M + i));
                });
                std::memset(value + M, 0, (deep - M) * sizeof(T));
            }
            product(rows, g + from * deep, deep, down, y.data());
            for (int64_t r = 0; r < rows; r++)
                row(D, [&](int64_t i, auto done) {
                    int64_t place = (from + r) * D + i;
                    replace(out + place, load(x + place) + after(load(&y[r * wide + i]) + load(bias2 + i), place), done);
                });
        });
    });
}

// From dout [R, D] to dx, which may be the same. `sums`: the gradients of fc1 [M, D] and fc2 [D, M], rows rounded up; of
// their biases, rounded up; of the norm's weight and bias.
void mlp_backward(const float *dout, float *dx, const float *rstd, const T *normal, const T *slope, const T *g,
                  const float *norm, const float *norm_bias, const float *fc1, const float *fc2, float *sums, int64_t R,
                  int64_t D, int64_t M, int64_t seed2, float rate) {
    int64_t wide = rounded(D), deep = rounded(M);
    Dropout after(seed2, rate);
    const Weight up(fc1, M, D, false), down(fc2, D, M, false);
    share(R, SOME_ROWS, M * wide + D * deep + deep + wide + 2 * D, sums, [&](auto each) {
        std::vector<T> half(SOME_ROWS * wide), h(SOME_ROWS * wide), du(SOME_ROWS * deep);
        std::vector<Unit> room(units(SOME_ROWS) * (wide + deep));
        std::vector<float> y(SOME_ROWS * std::max(wide, deep));
        each([&](int64_t from, int64_t rows, float *dfc1) {
            float *dfc2 = dfc1 + M * wide, *dbias1 = dfc2 + D * deep, *dbias2 = dbias1 + deep, *dnorm = dbias2 + wide;
            for (int64_t r = 0; r < rows; r++)
                row(D, [&](int64_t i, auto) {
                    int64_t place = (from + r) * D + i;
                    store(&half[r * wide + i], after(load(dout + place), place));
                });
            add_products(rows, half.data(), D, wide, g + from * deep, deep, room.data(), dfc2, dbias2);
            product(rows, half.data(), wide, down, y.data());
            for (int64_t r = 0; r < rows; r++)
                row(M, [&](int64_t i, auto) {
                    store(&du[r * deep + i], load(&y[r * deep + i]) * load(slope + (from + r) * deep + i));
                });
            normalize_again(rows, D, normal + from * D, norm, norm_bias, h.data(), wide);
            add_products(rows, du.data(), M, deep, h.data(), wide, room.data(), dfc1, dbias1);
            product(rows, du.data(), deep, up, y.data());
            for (int64_t r = 0; r < rows; r++) {
                int64_t place = (from + r) * D;
                norm_backward(
                    D, rstd[from + r], norm, dnorm, dnorm + D, [&](int64_t i) { return load(normal + place + i); },
                    [&](int64_t i) { return load(&y[r * wide + i]); },
                    [&](int64_t i, auto done, V v) { replace(dx + place + i, v + load(dout + place + i), done); });
            }
        });
    });
}

// Bytes that `layers` layers keep.
void encoder_room(int64_t *bytes, int64_t layers, int64_t B, int64_t N, int64_t H, int64_t K, int64_t M) {
    char *start = reinterpret_cast<char *>(64), *at = start;
    for (int64_t i = 0; i < layers; i++) Kept(at, {B, N, H, K, M});
    *bytes = at - start;
}

// All layers, x [B, N, D] to `out` [B, wanted, D]: the last does its work after attention for the first `wanted` tokens
// only. `room` is for `kept` layers: for all, or, with nothing to be kept, for one. `seeds` [layers, 2].
void encoder(const float *x, float *out, char *room, const Layer *weights, const int64_t *seeds, int64_t layers,
             int64_t kept, int64_t wanted, int64_t B, int64_t N, int64_t H, int64_t K, int64_t M, float eps,
             float rate) {
    std::vector<Kept> rooms;
    while (int64_t(rooms.size()) < kept) rooms.emplace_back(room, Sizes{B, N, H, K, M});
    std::unique_ptr<float[]> between(new float[B * N * H * K]);  // layers, which work in place
    const std::vector<float> none(3 * H * K);
    for (int64_t i = 0; i < layers; i++) {
        const Layer &w = weights[i];
        const Kept &k = rooms[i % kept];
        bool last = i + 1 == layers;
        int64_t count = last ? wanted : N;
        float *stream = last ? out : between.get();
        const std::vector<float> norms = head_norms(w, K);
        attention(i ? between.get() : x, stream, k.rstd1, k.normal1, k.qkv, k.head_stats, k.p, k.merged, w.norm1,
                  w.norm1_bias, w.qkv, w.qkv_bias ? w.qkv_bias : none.data(), norms.empty() ? nullptr : norms.data(),
                  w.proj, w.proj_bias, B, N, count, H, K, 1.0f / __builtin_sqrtf(float(K)), eps);
        mlp(stream, stream, k.rstd2, k.normal2, k.slope, k.g, w.norm2, w.norm2_bias, w.fc1, w.fc1_bias, w.fc2,
            w.fc2_bias, B * count, H * K, M, eps, seeds[2 * i], seeds[2 * i + 1], rate);
    }
}

// From dout [B, wanted, D] to dx [B, N, D]. `sums`: gradients layer by layer, as the backward passes above have them.
void encoder_backward(const float *dout, float *dx, char *room, const Layer *weights, float *sums,
                      const int64_t *seeds, int64_t layers, int64_t wanted, int64_t B, int64_t N, int64_t H, int64_t K,
                      int64_t M, float rate) {
    int64_t D = H * K, wide = rounded(D), deep = rounded(M);
    int64_t of_attention = 4 * D * wide + rounded(3 * D) + wide + 2 * D + 4 * K;
    int64_t of_mlp = M * wide + D * deep + deep + wide + 2 * D;
    std::vector<Kept> rooms;
    while (int64_t(rooms.size()) < layers) rooms.emplace_back(room, Sizes{B, N, H, K, M});
    std::unique_ptr<float[]> shorter(new float[B * wanted * D]);  // of the last layer; the others work in place
    for (int64_t i = layers - 1; i >= 0; i--) {
        const Layer &w = weights[i];
        const Kept &k = rooms[i];
        bool last = i + 1 == layers;
        int64_t count = last ? wanted : N;
        const std::vector<float> norms = head_norms(w, K);
        float *middle = last ? shorter.get() : dx, *own = sums + i * (of_attention + of_mlp);
        mlp_backward(last ? dout : dx, middle, k.rstd2, k.normal2, k.slope, k.g, w.norm2, w.norm2_bias, w.fc1, w.fc2,
                     own + of_attention, B * count, D, M, seeds[2 * i + 1], rate);
        attention_backward(middle, dx, k.rstd1, k.normal1, k.qkv, k.head_stats, k.p, k.merged, w.norm1, w.norm1_bias,
                           w.qkv, norms.empty() ? nullptr : norms.data(), w.proj, own, B, N, count, H, K,
                           1.0f / __builtin_sqrtf(float(K)));
    }
}

// Pictures, by strides, to [B, S - 1, S - 1, 24]: 2x2 patches along twelve directions `weight` [12, 12] and along their
// negatives; GELU, of which gelu(-x) = gelu(x) - x.
void whiten(const float *x, const int64_t *stride, const float *weight, T *out, int64_t B, int64_t S) {
    float along_lanes[12 * ROOM] = {};  // [patch, direction], the last lanes empty
    for (int64_t i = 0; i < 12 * 12; i++) along_lanes[i % 12 * ROOM + i / 12] = weight[i];
#pragma omp parallel for schedule(guided) collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < S - 1; i++)
            for (int64_t j = 0; j < S - 1; j++) {
                const float *corner = x + b * stride[0] + i * stride[2] + j * stride[3];
                T plus[ROOM], minus[ROOM];
                for (int c = 0; c < ROOM; c += LANES) {
                    V along = {};
                    for (int64_t t = 0; t < 12; t++)
                        along += corner[(t / 4) * stride[1] + (t / 2 % 2) * stride[2] + (t % 2) * stride[3]] *
                                 load(along_lanes + t * ROOM + c);
                    V value = gelu(along);
                    store(plus + c, value);
                    store(minus + c, value - along);
                }
                T *pixel = out + ((b * (S - 1) + i) * (S - 1) + j) * 24;
                std::memcpy(pixel, plus, 12 * sizeof(T));
                std::memcpy(pixel + 12, minus, 12 * sizeof(T));
            }
}

// A stage of the stem, x [B, S, S, I] to [B, G, G, C] with G = S / W: a convolution of 3x3, padded by one, the largest of
// each W x W, layer norm over the channels, GELU, plus x with `skip`. `conv`: the convolution's weight [C, I, 3, 3].
// `pooled` keeps the largest, `which` where each was.
void stage(const T *x, const float *conv, T *out, T *pooled, uint8_t *which, Statistics *stats, const float *weight,
           const float *bias, int64_t B, int64_t S, int64_t I, int64_t C, int64_t W, int64_t skip, float eps) {
    int64_t G = S / W, P = S + 2, paired = units(I), across = rounded(C);
    const std::vector<Unit> ready = taps(conv, C, I, false);
    share(B, 1, 0, nullptr, [&](auto each) {
        std::vector<T> padded(P * P * paired * PAIR);
        std::vector<float> lines(W * S * across);
        const Unit *corner = reinterpret_cast<const Unit *>(padded.data());
        each([&](int64_t b, int64_t, float *) {
            // A line at once, where pixels are whole units.
            for (int64_t i = 0, some = I % PAIR ? 1 : S; i < S * S; i += some)
                std::memcpy(&padded[((i / S + 1) * P + i % S + 1) * paired * PAIR], x + (b * S * S + i) * I,
                            some * I * sizeof(T));
            for (int64_t i = 0; i < G; i++) {
                for (int64_t w = 0; w < W; w++) {
                    Left three{corner + (i * W + w) * P * paired, paired, 1, 3, P * paired};
                    product(G * W, three, ready.data(), across, 3 * paired, &lines[w * S * across]);
                }
                for (int64_t j = 0; j < G; j++) {
                    int64_t at = (b * G + i) * G + j;
                    const float *window = &lines[j * W * across];
                    T *largest = pooled + at * C;
                    row(C, [&](int64_t c, auto) {
                        V v = load(window + c);
                        Int place = {};
                        for (int w = 1; w < W * W; w++) {
                            V other = load(window + (w / W * S + w % W) * across + c);
                            place = other > v ? w - Int{} : place;
                            v = larger(other, v);
                        }
                        store(largest + c, v);
                        Bytes bytes = __builtin_convertvector(place, Bytes);
                        std::memcpy(which + at * C + c, &bytes, sizeof bytes);
                    });
                    Statistics s = stats[at] = statistics(C, eps, [&](int64_t c) { return load(largest + c); });
                    row(C, [&](int64_t c, auto) {
                        V v = gelu((load(largest + c) - s.mean) * s.rstd * load(weight + c) + load(bias + c));
                        store(out + at * C + c, skip ? v + load(x + at * C + c) : v);
                    });
                }
            }
        });
    });
}

// The backward pass of a convolution of 3x3, padded by one, x [B, S, S, I] to [B, S, S, C], and of the stage behind it,
// from dout [B, G, G, C] to dx, if that is given. With `skip`, dout is added to dx. `grads`: C of the norm's weight, C
// of its bias, and [C, I, 3, 3] of the convolution's.
void stage_backward(const T *dout, const T *pooled, const uint8_t *which, const Statistics *stats, const float *weight,
                    const float *bias, const T *x, const float *conv, T *dx, float *grads, int64_t B, int64_t S,
                    int64_t I, int64_t C, int64_t W, int64_t skip) {
    int64_t G = S / W, P = S + 2;  // P: with a border of zeros
    int64_t paired = units(C), across = rounded(I), rows = rounded(C), columns = rounded(9 * I);
    const std::vector<Unit> turned = dx ? taps(conv, C, I, true) : std::vector<Unit>();
    // Those of the weight as [C, 3, 3, I], rows rounded up.
    std::unique_ptr<float[]> sums(new float[2 * C + C * columns]);
    constexpr int64_t SOME = 128;  // units summed over at a time, so that they stay in the cache
    share(B, B, 2 * C + C * columns, sums.get(), [&](auto each) {
        std::vector<float> room(C), line(S * across);
        std::vector<T> dy(P * P * paired * PAIR), padded(P * P * I);
        std::vector<Unit> left(SOME * rows), right(SOME * columns);
        float *through = room.data();  // the gradient before the GELU
        auto pixel = [&](int64_t q) { return (q / (G * W) + 1) * P + q % (G * W) + 1; };
        each([&](int64_t first, int64_t pictures, float *sum) {
            int64_t depth = 0;
            auto sum_up = [&] {
                product<true>(C, {left.data(), 1, rows}, right.data(), columns, depth, sum + 2 * C);
                depth = 0;
            };
            for (int64_t b = first; b < first + pictures; b++) {
                for (int64_t i = 0; i < G; i++)
                    for (int64_t j = 0; j < G; j++) {
                        int64_t at = (b * G + i) * G + j;
                        T *corner = &dy[((i * W + 1) * P + j * W + 1) * paired * PAIR];
                        const T *max = pooled + at * C;
                        Statistics s = stats[at];
                        row(C, [&](int64_t c, auto) {
                            V before = (load(max + c) - s.mean) * s.rstd * load(weight + c) + load(bias + c);
                            store(through + c, load(dout + at * C + c) * gelu_curve(before).slope);
                        });
                        norm_backward(
                            C, s.rstd, weight, sum, sum + C,
                            [&](int64_t c) { return (load(max + c) - s.mean) * s.rstd; },
                            [&](int64_t c) { return load(through + c); },
                            [&](int64_t c, auto, V d) {
                                Bytes bytes;
                                std::memcpy(&bytes, which + at * C + c, sizeof bytes);
                                Int place = __builtin_convertvector(bytes, Int);
                                for (int w = 0; w < W * W; w++)
                                    store(corner + (w / W * P + w % W) * paired * PAIR + c,
                                          (V)((Int)d & (place == w)));
                            });
                    }
                const Unit *lines = reinterpret_cast<const Unit *>(dy.data());
                if (dx)
                    for (int64_t i = 0; i < S; i++) {
                        Left three{lines + i * P * paired, paired, 1, 3, P * paired};
                        product(S, three, turned.data(), across, 3 * paired, line.data());
                        for (int64_t j = 0; j < S; j++) {
                            int64_t at = ((b * S + i) * S + j) * I;
                            row(I, [&](int64_t c, auto) {
                                V v = load(&line[j * across + c]);
                                store(dx + at + c, skip ? v + load(dout + at + c) : v);
                            });
                        }
                    }
                for (int64_t i = 0; i < S; i++)
                    std::memcpy(&padded[((i + 1) * P + 1) * I], x + (b * S + i) * S * I, S * I * sizeof(T));
                // Pixels that no window takes have no gradient. Three neighbours lie in a row.
                for (int64_t q = 0; q < G * W * G * W; q += PAIR) {
                    int64_t here = pixel(q), next = q + 1 < G * W * G * W ? pixel(q + 1) : 0;  // pixel 0 is border
                    pair(&dy[here * paired * PAIR], &dy[next * paired * PAIR], C, &left[depth * rows]);
                    for (int64_t line = 0; line < 3; line++) {
                        int64_t off = (line - 1) * P - 1;
                        pair(&padded[(here + off) * I], next ? &padded[(next + off) * I] : nullptr, 3 * I,
                             &right[depth * columns + line * 3 * I]);
                    }
                    if (++depth == SOME) sum_up();
                }
            }
            sum_up();
        });
    });
    std::memcpy(grads, sums.get(), 2 * C * sizeof(float));
#pragma omp parallel for
    for (int64_t c = 0; c < C; c++)
        for (int64_t tap = 0; tap < 9; tap++)
            for (int64_t i = 0; i < I; i++)
                grads[2 * C + (c * I + i) * 9 + tap] = sums[2 * C + c * columns + tap * I + i];
}

// y [R, O] = x [R, I] through a linear layer, plus `position` [N, O], if there is one, of the tokens of each picture.
void linear(const T *x, float *y, const float *weight, const float *bias, const float *position, int64_t R, int64_t N,
            int64_t I, int64_t O) {
    const Weight w(weight, O, I, true);
    share(R, SOME_ROWS, 0, nullptr, [&](auto each) {
        std::vector<T> padded(SOME_ROWS * rounded(I));
        std::vector<float> sums(SOME_ROWS * w.width);
        each([&](int64_t from, int64_t rows, float *) {
            for (int64_t r = 0; r < rows; r++)
                std::memcpy(&padded[r * rounded(I)], x + (from + r) * I, I * sizeof(T));
            product(rows, padded.data(), rounded(I), w, sums.data());
            for (int64_t r = 0; r < rows; r++) {
                const float *place = position ? position + (from + r) % N * O : nullptr;
                row(O, [&](int64_t o, auto) {
                    V v = load(&sums[r * w.width + o]) + load(bias + o);
                    store(y + (from + r) * O + o, place ? v + load(place + o) : v);
                });
            }
        });
    });
}

// From dy [R, O] to dx. `sums`: the gradients of the weight [O, I], rows rounded up, of the bias, rounded up, and of the
// `positions`: N, or none.
void linear_backward(const float *dy, const T *x, T *dx, const float *weight, float *sums, int64_t positions, int64_t R,
                     int64_t I, int64_t O) {
    int64_t across = rounded(I), wide = rounded(O);
    const Weight w(weight, O, I, false);
    share(R, SOME_ROWS, O * across + wide + positions * O, sums, [&](auto each) {
        std::vector<T> half(SOME_ROWS * wide), padded(SOME_ROWS * across);
        std::vector<Unit> room(units(SOME_ROWS) * (wide + across));
        std::vector<float> y(SOME_ROWS * across);
        each([&](int64_t from, int64_t rows, float *dweight) {
            float *dbias = dweight + O * across, *dposition = dbias + wide;
            for (int64_t r = 0; r < rows; r++) {
                const float *given = dy + (from + r) * O;
                row(O, [&](int64_t o, auto) { store(&half[r * wide + o], load(given + o)); });
                if (positions) {
                    float *own = dposition + (from + r) % positions * O;
                    row(O, [&](int64_t o, auto done) { replace(own + o, load(own + o) + load(given + o), done); });
                }
                std::memcpy(&padded[r * across], x + (from + r) * I, I * sizeof(T));
            }
            add_products(rows, half.data(), O, wide, padded.data(), across, room.data(), dweight, dbias);
            product(rows, half.data(), wide, w, y.data());
            for (int64_t r = 0; r < rows; r++)
                row(I, [&](int64_t i, auto) { store(dx + (from + r) * I + i, load(&y[r * across + i])); });
        });
    });
}

// Tokens x [B, N, D] through a layer norm to out [B, D]: their mean, by the softmax over tokens of what `weight` [D]
// makes of each. Kept are `stats` [B, N] and p [B, N], the shares.
void pool(const float *x, float *out, Statistics *stats, float *p, const float *norm, const float *norm_bias,
          const float *weight, int64_t B, int64_t N, int64_t D, float eps) {
    share(B, 1, 0, nullptr, [&](auto each) {
        std::vector<float> h(N * D);
        each([&](int64_t b, int64_t, float *) {
            float *own = p + b * N, *to = out + b * D, most = -INFINITY, sum = 0.0f;
            normalize(N, D, x + b * N * D, stats + b * N, norm, norm_bias, &eps, h.data());
            for (int64_t n = 0; n < N; n++) {
                V v = {};
                row(D, [&](int64_t i, auto done) { v += fresh(load(&h[n * D + i]) * load(weight + i), done); });
                own[n] = total(v);
                most = std::max(most, own[n]);
            }
            for (int64_t n = 0; n < N; n++) sum += own[n] = std::exp(own[n] - most);
            for (int64_t n = 0; n < N; n++) own[n] /= sum;
            row(D, [&](int64_t i, auto) {
                V v = {};
                for (int64_t n = 0; n < N; n++) v += own[n] * load(&h[n * D + i]);
                store(to + i, v);
            });
        });
    });
}

// From dout [B, D] to dx [B, N, D]. `sums`: the gradients of the norm's weight and bias and of `weight`, D each.
void pool_backward(const float *dout, float *dx, const float *x, Statistics *stats, const float *p, const float *norm,
                   const float *norm_bias, const float *weight, float *sums, int64_t B, int64_t N, int64_t D) {
    share(B, 1, 3 * D, sums, [&](auto each) {
        std::vector<float> h(N * D), ds(N), dh(D);
        each([&](int64_t b, int64_t, float *sum) {
            const float *own = p + b * N, *given = dout + b * D;
            float mean = 0.0f;
            normalize(N, D, x + b * N * D, stats + b * N, norm, norm_bias, nullptr, h.data());
            for (int64_t n = 0; n < N; n++) {
                V v = {};
                row(D, [&](int64_t i, auto done) { v += fresh(load(&h[n * D + i]) * load(given + i), done); });
                ds[n] = total(v);
                mean += own[n] * ds[n];
            }
            for (int64_t n = 0; n < N; n++) {
                float score = own[n] * (ds[n] - mean), *dweight = sum + 2 * D;
                int64_t place = (b * N + n) * D;
                row(D, [&](int64_t i, auto done) {
                    replace(dweight + i, load(dweight + i) + score * load(&h[n * D + i]), done);
                    store(&dh[i], own[n] * load(given + i) + score * load(weight + i));
                });
                Statistics s = stats[b * N + n];
                norm_backward(
                    D, s.rstd, norm, sum, sum + D, [&](int64_t i) { return (load(x + place + i) - s.mean) * s.rstd; },
                    [&](int64_t i) { return load(&dh[i]); },
                    [&](int64_t i, auto, V v) { store(dx + place + i, v); });
            }
        });
    });
}

// A step of Muon, one core for each matrix [rows, columns]: the momentum, the nearest semi-orthogonal matrix by
// Newton-Schulz steps of the polynomial a x + b x^3 + c x^5, decay. `order` names the matrices, the dearest first.
void muon(float *const *weights, const float *const *grads, float *const *momenta, const int64_t *rows,
          const int64_t *columns, const int64_t *order, int64_t count, float rate, float momentum, float decay,
          int64_t steps, float a, float b, float c) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t number = 0; number < count; number++) {
        int64_t which = order[number], R = rows[which], C = columns[which], size = R * C;
        const float *grad = grads[which];
        float *weight = weights[which], *average = momenta[which];
        std::vector<float> flat(size);
        V square = {};
        row(size, [&](int64_t i, auto done) {
            V g = load(grad + i), m = load(average + i), now = m + (1.0f - momentum) * (g - m);
            replace(average + i, now, done);
            V v = g + momentum * (load(average + i) - g);
            store(&flat[i], v);
            square += fresh(v * v, done);
        });
        float factor = 1.0f / (__builtin_sqrtf(total(square)) + 1e-7f);
        // x [low, wide]: the matrix, turned if it is high; zeros round both up, and stay.
        bool high = R > C;
        int64_t low = rounded(high ? C : R), wide = rounded(high ? R : C);
        std::vector<float> x(low * wide), y(low * wide), gram(low * low), squared(low * low);
        auto place = [&](int64_t r, int64_t i) { return high ? i * wide + r : r * wide + i; };
        for (int64_t r = 0; r < R; r++)
            for (int64_t i = 0; i < C; i++) x[place(r, i)] = flat[r * C + i] * factor;
        std::vector<T> left(low * wide);
        std::vector<Unit> right(wide / PAIR * wide);
        auto each = [&](int64_t elements, auto to, auto value) {
            for (int64_t i = 0; i < elements; i += LANES) store(to + i, value(i));
        };
        for (int64_t step = 0; step < steps; step++) {
            each(low * wide, left.data(), [&](int64_t i) { return load(&x[i]); });
            turn(left.data(), low, wide, wide / PAIR, right.data(), low);
            product(low, by_row(left.data(), wide), right.data(), low, wide / PAIR, gram.data());
            each(low * low, left.data(), [&](int64_t i) { return load(&gram[i]); });
            pair_rows(left.data(), low, low, right.data(), low);
            product(low, by_row(left.data(), low), right.data(), low, low / PAIR, squared.data());
            each(low * wide, left.data(), [&](int64_t i) { return load(&x[i]); });
            pair_rows(left.data(), low, wide, right.data(), wide);
            each(low * low, left.data(), [&](int64_t i) { return b * load(&gram[i]) + c * load(&squared[i]); });
            product(low, by_row(left.data(), low), right.data(), wide, low / PAIR, y.data());
            each(low * wide, x.data(), [&](int64_t i) { return a * load(&x[i]) + load(&y[i]); });
        }
        float scale = rate * __builtin_sqrtf(std::max(1.0f, float(R) / float(C)));
        for (int64_t r = 0; r < R; r++)
            for (int64_t i = 0; i < C; i++) {
                float &w = weight[r * C + i];
                w = w * (1.0f - rate * decay) - scale * x[place(r, i)];
            }
    }
}

}  // extern "C"
