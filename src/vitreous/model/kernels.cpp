// What stands between the matrix products of a training step on a CPU, each as one pass over memory.
//
// Compiled on the user's machine for its own vector unit, and called by native.py, which holds the products and
// says what is computed. T is the type of activations, float or bfloat16; sums and the residual stream are float.
//
// Letters: R rows, D their width, B pictures, N tokens, H heads, K width of a head, S side, C channels.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include <omp.h>

namespace {

// Sixteen lanes, which the compiler maps to the registers that there are. No row is shorter (native.py sees to it).
constexpr int LANES = 16;
typedef float V __attribute__((vector_size(64)));
typedef int32_t Int __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Half __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

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
    Bits wide = (Bits)v;
    Half half = __builtin_convertvector((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16, Half);
    std::memcpy(to, &half, sizeof half);
}
#else
using T = float;
#endif

// Runs `body(i, done)` for each block of a row, i its first element. The last block overlaps the one before where
// LANES do not divide D: its first `done` lanes have been worked on, which `fresh` blanks and `replace` leaves alone.
using None = std::integral_constant<int, 0>;
template <class F> inline void row(int64_t D, F body) {
    int64_t i = 0;
    for (; i + LANES <= D; i += LANES) body(i, None());
    if (i < D) body(D - LANES, int(i + LANES - D));
}
constexpr Int LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
inline V fresh(V v, None) { return v; }
inline V fresh(V v, int done) { return (V)((Int)v & (LANE >= done)); }
template <class E> inline void replace(E *at, V v, None) { store(at, v); }
template <class E> inline void replace(E *at, V v, int done) { store(at, LANE >= done ? v : load(at)); }
template <class N> inline void add(float *at, V v, N done) { store(at, load(at) + fresh(v, done)); }

inline V all(float x) { return x - V{}; }
inline V larger(V a, V b) { return a > b ? a : b; }

inline float total(V v) {
    typedef float V8 __attribute__((vector_size(32)));
    typedef float V4 __attribute__((vector_size(16)));
    V8 a[2];
    std::memcpy(a, &v, 64);
    V8 eight = a[0] + a[1];
    V4 b[2];
    std::memcpy(b, &eight, 32);
    V4 four = b[0] + b[1];
    return (four[0] + four[1]) + (four[2] + four[3]);
}

inline V exponential(V x) {
    x = x < -87.0f ? all(-87.0f) : x;
    x = x > 88.0f ? all(88.0f) : x;
    V n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded
    V r = x - n * 0.693359375f + n * 2.12194440e-4f;
    V p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (V)((__builtin_convertvector(n, Int) + 127) << 23);
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
inline V gelu_slope(V x) {
    V density = exponential(-0.5f * x * x);
    return below(x, density) + x * density * 0.39894228f;
}

// Runs `body(first, last, sums)` on equal shares of [0, count), one for each thread; `sums` is a thread's own room
// for `width` sums. They are then added up in order of the threads, so that a run can be repeated to the bit.
template <class F> void share(int64_t count, int64_t width, float *sum, F body) {
    std::vector<std::vector<float>> sums(omp_get_max_threads());
#pragma omp parallel
    {
        int64_t me = omp_get_thread_num(), threads = omp_get_num_threads();
        std::vector<float> own(width, 0.0f);
        body(count * me / threads, count * (me + 1) / threads, own.data());
        sums[me].swap(own);
    }
    std::memset(sum, 0, width * sizeof(float));
    for (auto &own : sums)
        for (size_t i = 0; i < own.size(); i++) sum[i] += own[i];
}

struct Statistics {
    float mean, rstd;
};

// Of a row whose block at i is `x(i)`.
template <class X> inline Statistics statistics(int64_t D, float eps, X x) {
    V sum = {}, square = {};
    row(D, [&](int64_t i, auto done) { sum += fresh(x(i), done); });
    float mean = total(sum) / D;
    row(D, [&](int64_t i, auto done) {
        V centred = fresh(x(i) - mean, done);
        square += centred * centred;
    });
    return {mean, 1.0f / __builtin_sqrtf(total(square) / D + eps)};
}

// Through a layer norm of the row `x`: `dh(i)` is its output's gradient, `take(i, done, dx)` gets that of `x`.
template <class X, class G, class F>
inline void norm_backward(int64_t D, Statistics s, const float *weight, float *dweight, float *dbias, X x, G dh,
                          F take) {
    V a = {}, b = {};
    row(D, [&](int64_t i, auto done) {
        V g = fresh(dh(i), done), product = g * ((x(i) - s.mean) * s.rstd), w = load(weight + i);
        store(dbias + i, load(dbias + i) + g);
        store(dweight + i, load(dweight + i) + product);
        a += g * w;
        b += product * w;
    });
    float mean_a = total(a) / D, mean_b = total(b) / D;
    row(D, [&](int64_t i, auto done) {
        V normal = (x(i) - s.mean) * s.rstd;
        take(i, done, (dh(i) * load(weight + i) - mean_a - normal * mean_b) * s.rstd);
    });
}

}  // namespace

extern "C" {

// out = x + branch + its `shift` [D], where there is a branch; h = layer norm of it, where it is wanted. [R, D]
void add_norm(const float *x, const T *branch, const float *shift, float *out, T *h, Statistics *stats,
              const float *weight, const float *bias, int64_t R, int64_t D, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < R; r++) {
        const float *from = x + r * D;
        if (branch) {
            float *to = out + r * D;
            row(D, [&](int64_t i, auto) { store(to + i, load(from + i) + (load(branch + r * D + i) + load(shift + i))); });
            from = to;
        }
        if (!h) continue;
        Statistics s = stats[r] = statistics(D, eps, [&](int64_t i) { return load(from + i); });
        row(D, [&](int64_t i, auto) {
            store(h + r * D + i, (load(from + i) - s.mean) * s.rstd * load(weight + i) + load(bias + i));
        });
    }
}

// Adds the gradient that came through the norm to the stream's, of which `half` is a copy. `sums` [3, D]: of the
// norm's weight, of its bias, and the stream's own, which is the gradient of the bias that was added before.
void add_norm_backward(const float *x, const T *dh, const Statistics *stats, const float *weight, float *stream,
                       T *half, float *sums, int64_t R, int64_t D) {
    share(R, 3 * D, sums, [&](int64_t first, int64_t last, float *sum) {
        for (int64_t r = first; r < last; r++) {
            float *to = stream + r * D, *own = sum + 2 * D;
            norm_backward(
                D, stats[r], weight, sum, sum + D, [&](int64_t i) { return load(x + r * D + i); },
                [&](int64_t i) { return load(dh + r * D + i); },
                [&](int64_t i, auto done, V dx) {
                    V v = load(to + i) + fresh(dx, done);
                    store(to + i, v);
                    store(half + r * D + i, v);
                    add(own + i, v, done);
                });
        }
    });
}

// qkv + `shift` [B, N, 3, H, K] to q, k, v, each [B, H, N, K]; q and k normalised where there are `weights`
// [2, 2, K] (of q and k: weight and bias), q scaled. `stats` [B, N, 2, H].
void split_heads(const T *qkv, const float *shift, T *q, T *k, T *v, Statistics *stats, const float *weights,
                 int64_t B, int64_t N, int64_t H, int64_t K, float scale, float eps) {
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t n = 0; n < N; n++)
            for (int64_t part = 0; part < 3; part++)
                for (int64_t h = 0; h < H; h++) {
                    const T *from = qkv + (((b * N + n) * 3 + part) * H + h) * K;
                    T *to = (part == 0 ? q : part == 1 ? k : v) + ((b * H + h) * N + n) * K;
                    const float *own = shift + (part * H + h) * K, *weight = weights + 2 * part * K, *bias = weight + K;
                    float factor = part == 0 ? scale : 1.0f;
                    auto x = [&](int64_t i) { return load(from + i) + load(own + i); };
                    if (part == 2 || !weights) {
                        row(K, [&](int64_t i, auto) { store(to + i, x(i) * factor); });
                        continue;
                    }
                    Statistics s = stats[((b * N + n) * 2 + part) * H + h] = statistics(K, eps, x);
                    row(K, [&](int64_t i, auto) {
                        V normal = (x(i) - s.mean) * s.rstd;
                        store(to + i, (normal * load(weight + i) + load(bias + i)) * factor);
                    });
                }
}

// `sums`: 3 H K for `shift`, then [2, 2, K] for the norms.
void split_heads_backward(const T *dq, const T *dk, const T *dv, const T *qkv, const float *shift,
                          const Statistics *stats, const float *weights, T *dqkv, float *sums, int64_t B, int64_t N,
                          int64_t H, int64_t K, float scale) {
    share(B, 3 * H * K + 4 * K, sums, [&](int64_t first, int64_t last, float *sum) {
        for (int64_t b = first; b < last; b++)
            for (int64_t n = 0; n < N; n++)
                for (int64_t part = 0; part < 3; part++)
                    for (int64_t h = 0; h < H; h++) {
                        const T *from = (part == 0 ? dq : part == 1 ? dk : dv) + ((b * H + h) * N + n) * K;
                        int64_t at = (((b * N + n) * 3 + part) * H + h) * K;
                        const float *own = shift + (part * H + h) * K;
                        float *dshift = sum + (part * H + h) * K, *norm = sum + 3 * H * K + 2 * part * K;
                        float factor = part == 0 ? scale : 1.0f;
                        auto dh = [&](int64_t i) { return load(from + i) * factor; };
                        auto take = [&](int64_t i, auto done, V dx) {
                            add(dshift + i, dx, done);
                            store(dqkv + at + i, dx);
                        };
                        if (part == 2 || !weights)
                            row(K, [&](int64_t i, auto done) { take(i, done, dh(i)); });
                        else
                            norm_backward(
                                K, stats[((b * N + n) * 2 + part) * H + h], weights + 2 * part * K, norm, norm + K,
                                [&](int64_t i) { return load(qkv + at + i) + load(own + i); }, dh, take);
                    }
    });
}

// [B, I, J, K] to [B, J, I, K]
void swap_middle(const T *from, T *to, int64_t B, int64_t I, int64_t J, int64_t K) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < B; b++)
        for (int64_t j = 0; j < J; j++)
            for (int64_t i = 0; i < I; i++)
                std::memcpy(to + ((b * J + j) * I + i) * K, from + ((b * I + i) * J + j) * K, K * sizeof(T));
}

// In place, over each row of [R, N].
void softmax(T *scores, int64_t R, int64_t N) {
#pragma omp parallel
    {
        std::vector<float> room(N);
        float *wide = room.data();
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            T *at = scores + r * N;
            V most = load(at), sum = {};
            row(N, [&](int64_t i, auto) { most = larger(most, load(at + i)); });
            float largest = most[0];
            for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
            row(N, [&](int64_t i, auto done) {
                V v = exponential(load(at + i) - largest);
                store(wide + i, v);
                sum += fresh(v, done);
            });
            float factor = 1.0f / total(sum);
            row(N, [&](int64_t i, auto) { store(at + i, load(wide + i) * factor); });
        }
    }
}

// In place in `grad`.
void softmax_backward(const T *weights, T *grad, int64_t R, int64_t N) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < R; r++) {
        const T *p = weights + r * N;
        T *g = grad + r * N;
        V sum = {};
        row(N, [&](int64_t i, auto done) { sum += fresh(load(p + i) * load(g + i), done); });
        float mean = total(sum);
        row(N, [&](int64_t i, auto done) { replace(g + i, load(p + i) * (load(g + i) - mean), done); });
    }
}

// g = gelu(u + shift), [R, D]
void gelu_forward(const T *u, const float *shift, T *g, int64_t R, int64_t D) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < R; r++)
        row(D, [&](int64_t i, auto) { store(g + r * D + i, gelu(load(u + r * D + i) + load(shift + i))); });
}

// In place in `grad`; `sums` [D] for `shift`.
void gelu_backward(const T *u, const float *shift, T *grad, float *sums, int64_t R, int64_t D) {
    share(R, D, sums, [&](int64_t first, int64_t last, float *sum) {
        for (int64_t r = first; r < last; r++) {
            T *g = grad + r * D;
            row(D, [&](int64_t i, auto done) {
                V v = load(g + i) * gelu_slope(load(u + r * D + i) + load(shift + i));
                add(sum + i, v, done);
                replace(g + i, v, done);
            });
        }
    });
}

// Pictures, by strides, to [B, S - 1, S - 1, C]: whitened 2x2 patches, GELU. `weight` [12, C].
void whiten(const float *x, const int64_t *stride, const float *weight, T *out, int64_t B, int64_t S, int64_t C) {
#pragma omp parallel for schedule(static) collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < S - 1; i++)
            for (int64_t j = 0; j < S - 1; j++) {
                const float *corner = x + b * stride[0] + i * stride[2] + j * stride[3];
                T *to = out + ((b * (S - 1) + i) * (S - 1) + j) * C;
                float taps[12];
                for (int64_t t = 0; t < 12; t++)
                    taps[t] = corner[(t / 4) * stride[1] + (t / 2 % 2) * stride[2] + (t % 2) * stride[3]];
                row(C, [&](int64_t c, auto) {
                    V sum = {};
                    for (int64_t t = 0; t < 12; t++) sum += taps[t] * load(weight + t * C + c);
                    store(to + c, gelu(sum));
                });
            }
}

// y [B, S, S, C]: the largest of each W x W, layer norm over the channels, GELU, plus `skip` where there is one, to
// [B, G, G, C] with G = S / W. `pooled` keeps the largest, `which` where each was.
void stage(const T *y, const T *skip, T *out, T *pooled, uint8_t *which, Statistics *stats, const float *weight,
           const float *bias, int64_t B, int64_t S, int64_t C, int64_t W, float eps) {
    int64_t G = S / W;
#pragma omp parallel for schedule(static) collapse(3)
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < G; i++)
            for (int64_t j = 0; j < G; j++) {
                int64_t at = (b * G + i) * G + j;
                const T *corner = y + ((b * S + i * W) * S + j * W) * C;
                T *largest = pooled + at * C;
                row(C, [&](int64_t c, auto) {
                    V v = load(corner + c);
                    Int place = {};
                    for (int w = 1; w < W * W; w++) {
                        V other = load(corner + (w / W * S + w % W) * C + c);
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
                    store(out + at * C + c, skip ? v + load(skip + at * C + c) : v);
                });
            }
}

// dout [B, G, G, C] to dy [B, S, S, C]; `sums` [2, C] of the norm's weight and bias.
void stage_backward(const T *dout, const T *pooled, const uint8_t *which, const Statistics *stats, const float *weight,
                    const float *bias, T *dy, float *sums, int64_t B, int64_t S, int64_t C, int64_t W) {
    int64_t G = S / W;
    share(B, 2 * C, sums, [&](int64_t first, int64_t last, float *sum) {
        std::vector<float> room(C);
        float *through = room.data();  // the gradient before the GELU
        for (int64_t b = first; b < last; b++) {
            if (S % W) std::memset(static_cast<void *>(dy + b * S * S * C), 0, S * S * C * sizeof(T));
            for (int64_t i = 0; i < G; i++)
                for (int64_t j = 0; j < G; j++) {
                    int64_t at = (b * G + i) * G + j;
                    T *corner = dy + ((b * S + i * W) * S + j * W) * C;
                    const T *x = pooled + at * C;
                    Statistics s = stats[at];
                    row(C, [&](int64_t c, auto) {
                        V slope = gelu_slope((load(x + c) - s.mean) * s.rstd * load(weight + c) + load(bias + c));
                        store(through + c, load(dout + at * C + c) * slope);
                    });
                    norm_backward(
                        C, s, weight, sum, sum + C, [&](int64_t c) { return load(x + c); },
                        [&](int64_t c) { return load(through + c); },
                        [&](int64_t c, auto, V dx) {
                            Bytes bytes;
                            std::memcpy(&bytes, which + at * C + c, sizeof bytes);
                            Int place = __builtin_convertvector(bytes, Int);
                            for (int w = 0; w < W * W; w++)
                                store(corner + (w / W * S + w % W) * C + c, (V)((Int)dx & (place == w)));
                        });
                }
        }
    });
}

}  // extern "C"
