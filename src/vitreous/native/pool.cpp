// Attention pooling (arXiv 2104.05704): the final layer norm, then the mean of an image's tokens, weighted by the
// softmax of their scores. A score is the product of a token and the query. One core takes one image through all of it,
// so the tokens stay in its cache.
//
// B images, N tokens, D channels of a token. Everything is float32 and row major, tokens are [B, N, D].

#include "arguments.h"
#include "norms.h"
#include "parallel.h"

namespace {

// The arguments that both passes share: sizes [B, N, D]. `kept` has 3 B N elements: the norm's statistics [B, N, 2],
// then the softmax [B, N].
struct PoolSizes {
    int64_t B, N, D;
    explicit PoolSizes(Arguments &arguments)
        : B(arguments.size(1)), N(arguments.size(1)), D(arguments.size(MIN_WIDTH)) {}
    int64_t elements() const { return checked_product(B, N, D); }
    int64_t kept() const { return checked_product(B, N, 3); }
};

} // namespace

// From tokens x [B, N, D] to out [B, D]. Tensors: x, out, kept, the norm's weight [D] and bias [D], the query [D].
// Numbers: eps.
KERNEL(pool) {
    const PoolSizes s(arguments);
    const int64_t B = s.B, N = s.N, D = s.D;
    const float *x = arguments.tensor<float>(s.elements());
    float *out = arguments.tensor<float>(checked_product(B, D));
    float *kept = arguments.tensor<float>(s.kept());
    const float *norm = arguments.tensor<float>(D), *norm_bias = arguments.tensor<float>(D);
    const float *query = arguments.tensor<float>(D);
    const float eps = arguments.number();
    arguments.end();

    Statistics *stats = reinterpret_cast<Statistics *>(kept);
    float *softmax = kept + 2 * B * N;
    parallel_chunks(B, 1, [&](auto run) {
        std::vector<float> h(N * D);
        run([&](int64_t b, int64_t) {
            float *p = softmax + b * N, *to = out + b * D, max_score = -INFINITY, sum = 0.0f;
            normalize(N, D, x + b * N * D, stats + b * N, norm, norm_bias, &eps, h.data());
            for (int64_t n = 0; n < N; n++) {
                Vec v = {};
                for_each_vector(
                    D, [&](int64_t i, auto done) { v += keep_new_lanes(load(&h[n * D + i]) * load(query + i), done); });
                p[n] = sum_lanes(v);
                max_score = std::max(max_score, p[n]);
            }
            for (int64_t n = 0; n < N; n++) sum += p[n] = std::exp(p[n] - max_score);
            for (int64_t n = 0; n < N; n++) p[n] /= sum;
            for_each_vector(D, [&](int64_t i, auto) {
                Vec v = {};
                for (int64_t n = 0; n < N; n++) v += p[n] * load(&h[n * D + i]);
                store(to + i, v);
            });
        });
    });
}

// From dout [B, D] to dx [B, N, D] and `gradients` [3, D]: those of the norm's weight, its bias and the query.
// Tensors: dout, dx, x, kept, the norm's weight and bias, the query, gradients.
KERNEL(pool_backward) {
    const PoolSizes s(arguments);
    const int64_t B = s.B, N = s.N, D = s.D;
    const float *dout = arguments.tensor<float>(checked_product(B, D));
    float *dx = arguments.tensor<float>(s.elements());
    const float *x = arguments.tensor<float>(s.elements());
    float *kept = arguments.tensor<float>(s.kept());
    const float *norm = arguments.tensor<float>(D), *norm_bias = arguments.tensor<float>(D);
    const float *query = arguments.tensor<float>(D);
    float *gradients = arguments.tensor<float>(3 * D);
    arguments.end();

    Statistics *stats = reinterpret_cast<Statistics *>(kept);
    const float *softmax = kept + 2 * B * N;
    SumLayout layout;
    const int64_t dnorm = layout.add(1, D, gradients), dnorm_bias = layout.add(1, D, gradients + D);
    const int64_t dquery = layout.add(1, D, gradients + 2 * D);
    parallel_sum(B, 1, layout, [&](auto run) {
        std::vector<float> h(N * D), ds(N), dh(D);
        run([&](int64_t b, int64_t, float *sums) {
            const float *p = softmax + b * N, *dout_row = dout + b * D;
            float mean = 0.0f, *dquery_sums = sums + dquery;
            normalize(N, D, x + b * N * D, stats + b * N, norm, norm_bias, nullptr, h.data());
            for (int64_t n = 0; n < N; n++) {
                Vec v = {};
                for_each_vector(D, [&](int64_t i, auto done) {
                    v += keep_new_lanes(load(&h[n * D + i]) * load(dout_row + i), done);
                });
                ds[n] = sum_lanes(v);
                mean += p[n] * ds[n];
            }
            for (int64_t n = 0; n < N; n++) {
                const float dscore = p[n] * (ds[n] - mean);
                int64_t offset = (b * N + n) * D;
                for_each_vector(D, [&](int64_t i, auto done) {
                    store_new_lanes(dquery_sums + i, load(dquery_sums + i) + dscore * load(&h[n * D + i]), done);
                    store(&dh[i], p[n] * load(dout_row + i) + dscore * load(query + i));
                });
                Statistics s = stats[b * N + n];
                norm_backward(
                    D, s.rstd, norm, sums + dnorm, sums + dnorm_bias,
                    [&](int64_t i) { return (load(x + offset + i) - s.mean) * s.rstd; },
                    [&](int64_t i) { return load(&dh[i]); },
                    [&](int64_t i, auto, Vec v) { store(dx + offset + i, v); });
            }
        });
    });
}
