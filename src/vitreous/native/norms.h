// Layer norm of rows, forward and backward. The forward pass reads a row once for its mean and variance and once to
// write the result; the backward pass keeps the normalized row or computes it again, whichever its caller stores.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace {

struct Statistics {
    float mean, rstd; // rstd: 1 / sqrt(variance + eps)
};

// Statistics of a row of `width` elements; `x(i)` is the vector from element i. Sums are of differences from the first
// element: with a large mean, the difference of two large sums would lose digits.
template <class X> inline Statistics statistics(int64_t width, float eps, X x) {
    Vec sum = {}, square = {};
    float origin = x(0)[0];
    for_each_vector(width, [&](int64_t i, auto done) {
        Vec v = keep_new_lanes(x(i) - origin, done);
        sum += v;
        square += v * v;
    });
    float mean = sum_lanes(sum) / width;
    return {origin + mean, 1.0f / __builtin_sqrtf(std::max(sum_lanes(square) / width - mean * mean, 0.0f) + eps)};
}

// Backward pass of one row's layer norm. `normal(i)` is the normalized row before weight and bias, and `dy(i)` the
// gradient of the output. Calls `take_dx(i, done, dx)` with the gradient of the input, and adds to `dweight` and
// `dbias` [width].
template <class X, class G, class F>
inline void norm_backward(int64_t width, float rstd, const float *weight, float *dweight, float *dbias, X normal, G dy,
                          F take_dx) {
    Vec a = {}, b = {}; // sums of g weight and of g normal weight
    for_each_vector(width, [&](int64_t i, auto done) {
        Vec g = keep_new_lanes(dy(i), done), product = g * normal(i), w = load(weight + i);
        store(dbias + i, load(dbias + i) + g);
        store(dweight + i, load(dweight + i) + product);
        a += g * w;
        b += product * w;
    });
    float mean_a = sum_lanes(a) / width, mean_b = sum_lanes(b) / width;
    for_each_vector(width, [&](int64_t i, auto done) {
        take_dx(i, done, (dy(i) * load(weight + i) - mean_a - normal(i) * mean_b) * rstd);
    });
}

// h [rows, width] = layer norm of x [rows, width]. Computes `stats` [rows] if `eps` is not null; otherwise it reads
// them.
inline void normalize(int64_t rows, int64_t width, const float *x, Statistics *stats, const float *weight,
                      const float *bias, const float *eps, float *h) {
    for (int64_t r = 0; r < rows; r++, x += width, h += width, stats++) {
        if (eps) *stats = statistics(width, *eps, [&](int64_t i) { return load(x + i); });
        for_each_vector(width, [&](int64_t i, auto) {
            store(h + i, (load(x + i) - stats->mean) * stats->rstd * load(weight + i) + load(bias + i));
        });
    }
}

// h [rows, width], whose rows are `h_stride` apart, = layer norm of x [rows, width]. Also writes what the backward pass
// needs: the rows before weight and bias, `normal` [rows, width], and `rstd` [rows].
inline void normalize(int64_t rows, int64_t width, const float *x, float *rstd, Act *normal, const float *weight,
                      const float *bias, float eps, Act *h, int64_t h_stride) {
    for (int64_t r = 0; r < rows; r++, x += width, h += h_stride, rstd++, normal += width) {
        Statistics s = statistics(width, eps, [&](int64_t i) { return load(x + i); });
        *rstd = s.rstd;
        for_each_vector(width, [&](int64_t i, auto) {
            Vec v = (load(x + i) - s.mean) * s.rstd;
            store(normal + i, v);
            store(h + i, v * load(weight + i) + load(bias + i));
        });
    }
}

// Computes h again in the backward pass, from the kept rows `normal` [rows, width].
inline void normalize_again(int64_t rows, int64_t width, const Act *normal, const float *weight, const float *bias,
                            Act *h, int64_t h_stride) {
    for (int64_t r = 0; r < rows; r++, h += h_stride, normal += width)
        for_each_vector(width,
                        [&](int64_t i, auto) { store(h + i, load(normal + i) * load(weight + i) + load(bias + i)); });
}

} // namespace
