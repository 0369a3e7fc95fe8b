// The encoder of a Vision Transformer: attention and MLP of all layers, forward and backward. Each core takes a few
// images at a time through a whole branch (norm, products, softmax or GELU, residual sum), so that intermediate results
// stay in its own cache. The forward pass writes what the backward pass needs on the way (`Kept`).
//
// B images, N tokens, H heads, K channels of a head, D = H * K channels of a token, M hidden units of the MLP. Tokens
// are float32 [B, N, D] and sums are float32; kept values and the operands of products are `Act`. All arrays are row
// major. `padded_D`, `padded_K` and so on are these sizes rounded up to whole registers; the padding is zero.

#include "arguments.h"
#include "norms.h"
#include "parallel.h"
#include "products.h"

namespace {

struct Sizes {
    int64_t B, N, H, K, M, D;
};

// The weights of a layer, in the order in which ops.py passes them and gets their gradients.
enum Field {
    QKV,
    PROJ,
    QKV_BIAS,
    PROJ_BIAS,
    NORM1,
    NORM1_BIAS,
    Q_NORM,
    Q_NORM_BIAS,
    K_NORM,
    K_NORM_BIAS,
    FC1,
    FC2,
    FC1_BIAS,
    FC2_BIAS,
    NORM2,
    NORM2_BIAS,
    FIELDS
};
struct Shape {
    int64_t rows, columns;
    bool optional;
};
// Shape of a weight; a vector counts as one row.
Shape shape(int64_t field, const Sizes &s) {
    const int64_t D = s.D, K = s.K, M = s.M;
    const Shape shapes[FIELDS] = {
        {3 * D, D, false}, {D, D, false}, {1, 3 * D, true}, {1, D, false}, {1, D, false}, {1, D, false},
        {1, K, true},      {1, K, true},  {1, K, true},     {1, K, true},  {M, D, false}, {D, M, false},
        {1, M, false},     {1, D, false}, {1, D, false},    {1, D, false},
    };
    return shapes[field];
}

struct Layer {
    const float *weights[FIELDS];
    float *gradients[FIELDS] = {};
    std::vector<float> head_norms; // [4, K]: weight and bias of q's norm, then of k's; empty without these norms

    Layer(Arguments &arguments, const Sizes &s) {
        for (int64_t i = 0; i < FIELDS; i++) {
            Shape size = shape(i, s);
            weights[i] = arguments.tensor<float>(checked_product(size.rows, size.columns), size.optional);
        }
        int64_t norm_weights = 0;
        for (int64_t i = Q_NORM; i <= K_NORM_BIAS; i++) norm_weights += weights[i] != nullptr;
        if (norm_weights % 4) throw Refusal(MISSING, arguments.read_tensors());
        for (int64_t i = Q_NORM; norm_weights && i <= K_NORM_BIAS; i++)
            head_norms.insert(head_norms.end(), weights[i], weights[i] + s.K);
    }

    // Lays out the gradients of the existing weights from `start`, one after another; returns their number of elements.
    int64_t place_gradients(float *start, const Sizes &s) {
        float *next = start;
        for (int64_t i = 0; i < FIELDS; i++)
            if (weights[i]) {
                gradients[i] = next;
                next += shape(i, s).rows * shape(i, s).columns;
            }
        return next - start;
    }
    int64_t elements(const Sizes &s) const {
        int64_t sum = 0;
        for (int64_t i = 0; i < FIELDS; i++)
            if (weights[i]) sum += shape(i, s).rows * shape(i, s).columns;
        return sum;
    }
};

// Offsets of the gradients of fields first to last, inclusive, in a private copy of sums.
struct Offsets {
    SumLayout layout;
    int64_t at[FIELDS] = {};
    Offsets(const Layer &layer, const Sizes &s, Field first, Field last) {
        for (int64_t i = first; i <= last; i++)
            at[i] = layout.add(shape(i, s).rows, shape(i, s).columns, layer.gradients[i]);
    }
};

// What a layer keeps for its backward pass. T is its number of output tokens, whose queries attend to all N tokens.
// `kept_bytes` in ops.py computes the same number of bytes.
struct Kept {
    float *rstd1, *rstd2;   // [B, N] and [B, T]: 1 / standard deviation in the layer norms
    Statistics *head_stats; // [B, N, 2, H]: of the norms of q and k, if the layer has them
    Act *normal1, *normal2; // [B, N, D] and [B, T, D]: the layer norms' result before weight and bias
    Act *qkv;               // [B, N, 3, H, K]
    Act *attention;         // [B, H, T, padded_N]: the softmax
    Act *merged;            // [B, T, H, K]: the heads' output
    Act *slope, *hidden;    // [B, T, padded_M]: the derivative of GELU and GELU itself, both after dropout
    Kept(Cutter &cutter, const Sizes &s, int64_t T, bool qk_norm) {
        int64_t rows = checked_product(s.B, s.N), out_rows = checked_product(s.B, T);
        cutter.cut(rstd1, rows);
        cutter.cut(rstd2, out_rows);
        cutter.cut(head_stats, checked_product(qk_norm ? rows : 0, 2 * s.H));
        cutter.cut(normal1, checked_product(rows, s.D));
        cutter.cut(qkv, checked_product(rows, 3 * s.D));
        cutter.cut(attention, checked_product(out_rows, s.H, round_up(s.N)));
        cutter.cut(merged, checked_product(out_rows, s.D));
        cutter.cut(normal2, checked_product(out_rows, s.D));
        cutter.cut(slope, checked_product(out_rows, round_up(s.M)));
        cutter.cut(hidden, checked_product(out_rows, round_up(s.M)));
    }
};

// Dropout of one row, as model/dropout.py defines it: element j of a sample is kept if
// lowbias32(j * 0x9e3779b1 + key) >= threshold (Chris Wellons' hash). The mask is a pure function of key and element,
// so the backward pass computes it again instead of keeping it.
struct RowDropout {
    uint32_t threshold, key, first; // first: number of the row's first element within its sample
    float scale;
    Vec operator()(Vec v, int64_t i) const {
        if (!threshold) return v;
        Bits x = ((Bits)LANE + (first + uint32_t(i))) * 0x9e3779b1u + key;
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        x ^= x >> 16;
        return x >= threshold ? v * scale : broadcast(0.0f);
    }
};

// Dropout of all layers, or, after `site`, of one place in one layer.
struct Dropout {
    uint32_t threshold;  // rate * 2^32; with 0 there is no dropout and there are no keys
    float scale;         // 1 / (1 - rate), of the kept elements
    const int32_t *keys; // [layers, 2, B]: of the MLP's hidden units and of its output; [B] after `site`
    Dropout site(int64_t number, int64_t B) const { return {threshold, scale, keys ? keys + number * B : nullptr}; }
    RowDropout row(int64_t row, int64_t tokens, int64_t width) const {
        if (!threshold) return {0, 0, 0, scale};
        return {threshold, uint32_t(keys[row / tokens]), uint32_t(row % tokens * width), scale};
    }
};

// weights [padded N] = softmax of scores [N]; the padding is zeroed. Overwrites the scores.
void softmax(float *scores, Act *weights, int64_t N) {
    int64_t last_vector = (N - 1) / LANES * LANES;
    auto inside = LANE < int(N - last_vector);
    Vec tail = inside ? load(scores + last_vector) : broadcast(-INFINITY), largest = tail, sum = {};
    for (int64_t c = 0; c < last_vector; c += LANES) largest = maximum(largest, load(scores + c));
    float max_score = max_lanes(largest);
    for (int64_t c = 0; c < last_vector; c += LANES) {
        Vec v = exp_nonpositive(load(scores + c) - max_score);
        store(scores + c, v);
        sum += v;
    }
    tail = inside ? exp_nonpositive(tail - max_score) : broadcast(0.0f);
    float factor = 1.0f / sum_lanes(sum + tail);
    for (int64_t c = 0; c < last_vector; c += LANES) store(weights + c, load(scores + c) * factor);
    store(weights + last_vector, tail * factor);
    for (int64_t c = last_vector + LANES; c < round_up(N); c += LANES) store(weights + c, Vec{});
}

// ds [padded N], the gradient of the scores, = p (dp - sum of p dp), with p [padded N] the softmax and dp its gradient.
// The padding of p is zero, so the padding of ds becomes zero too.
void softmax_backward(const Act *p, const float *dp, Act *ds, int64_t N) {
    Vec sum = {};
    for (int64_t c = 0; c < N; c += LANES) sum += load(p + c) * load(dp + c);
    float weighted_sum = sum_lanes(sum);
    for (int64_t c = 0; c < round_up(N); c += LANES) store(ds + c, load(p + c) * (load(dp + c) - weighted_sum));
}

// Offsets of one token's part (0 q, 1 k, 2 v) and head in the arrays of image b. Each array is laid out in the order
// in which its reader goes through memory.
struct HeadIndex {
    int64_t b, N, H, K, padded_K;
    // In [B, N, 3, H, K], in the statistics [B, N, 2, H], and in one image's split heads [3, H, N, padded_K].
    int64_t qkv(int64_t n, int64_t part, int64_t h) const { return (((b * N + n) * 3 + part) * H + h) * K; }
    int64_t statistics(int64_t n, int64_t part, int64_t h) const { return ((b * N + n) * 2 + part) * H + h; }
    int64_t split(int64_t part, int64_t n, int64_t h) const { return ((part * H + h) * N + n) * padded_K; }
};

// Copies q, k and v of one image from [N, 3, H, K] to split [3, H, N, padded_K]. Applies the norms of q and k unless
// `head_norms` is null, and multiplies q by `scale`. Computes `stats` if `eps` is not null; otherwise it reads them.
void split_heads(HeadIndex index, const Act *qkv, Statistics *stats, const float *head_norms, float scale,
                 const float *eps, Act *split) {
    int64_t K = index.K;
    for (int64_t n = 0; n < index.N; n++)
        for (int64_t part = 0; part < 3; part++)
            for (int64_t h = 0; h < index.H; h++) {
                const Act *from = qkv + index.qkv(n, part, h);
                Act *to = split + index.split(part, n, h);
                float factor = part == 0 ? scale : 1.0f;
                auto x = [&](int64_t i) { return load(from + i); };
                if (part == 2 || !head_norms) {
                    for_each_vector(K, [&](int64_t i, auto) { store(to + i, x(i) * factor); });
                    continue;
                }
                const float *weight = head_norms + 2 * part * K;
                Statistics &s = stats[index.statistics(n, part, h)];
                if (eps) s = statistics(K, *eps, x);
                for_each_vector(K, [&](int64_t i, auto) {
                    Vec normal = (x(i) - s.mean) * s.rstd;
                    store(to + i, (normal * load(weight + i) + load(weight + K + i)) * factor);
                });
            }
}

// out [B, out_tokens, D] = x + attention(norm(x)) for the first `out_tokens` of the tokens x [B, N, D], which attend to
// all N. `out` may be x if out_tokens is N.
void attention_forward(const float *x, float *out, const Kept &kept, const Layer &layer, const Sizes &s,
                       int64_t out_tokens, float eps) {
    const int64_t B = s.B, N = s.N, H = s.H, K = s.K, D = s.D;
    const float *const *w = layer.weights, *head_norms = layer.head_norms.empty() ? nullptr : layer.head_norms.data();
    const float *norm = w[NORM1], *norm_bias = w[NORM1_BIAS], scale = 1.0f / __builtin_sqrtf(float(K));
    float *rstd = kept.rstd1;
    Statistics *head_stats = kept.head_stats;
    Act *normal = kept.normal1, *qkv = kept.qkv, *attention = kept.attention, *merged = kept.merged;
    int64_t padded_D = round_up(D), padded_K = round_up(K), padded_N = round_up(N);
    int64_t max_images = std::max<int64_t>(1, CHUNK_ROWS / N);
    const PackedWeight qkv_weight(w[QKV], 3 * D, D, FORWARD), proj_weight(w[PROJ], D, D, FORWARD);
    const std::vector<float> zeros(w[QKV_BIAS] ? 0 : 3 * D);
    const float *bias = w[QKV_BIAS] ? w[QKV_BIAS] : zeros.data(), *proj_bias = w[PROJ_BIAS];
    parallel_chunks(B, max_images, [&](auto run) {
        // The padding of rows and columns is zero here and is never written.
        std::vector<Act> h(max_images * N * padded_D), split(3 * H * N * padded_K);
        std::vector<Unit> keys(padded_K / UNIT_SIZE * padded_N), values(unit_count(N) * padded_K);
        std::vector<float> y(max_images * N * qkv_weight.width), scores(out_tokens * padded_N),
            head_outputs(H * N * padded_K);
        run([&](int64_t first, int64_t images) {
            int64_t rows = images * N, first_row = first * N;
            normalize(rows, D, x + first_row * D, rstd + first_row, normal + first_row * D, norm, norm_bias, eps,
                      h.data(), padded_D);
            multiply(rows, h.data(), padded_D, qkv_weight, y.data());
            for (int64_t r = 0; r < rows; r++)
                for_each_vector(3 * D, [&](int64_t i, auto) {
                    store(qkv + (first_row + r) * 3 * D + i, load(&y[r * qkv_weight.width + i]) + load(bias + i));
                });
            for (int64_t b = first; b < first + images; b++) {
                HeadIndex index{b, N, H, K, padded_K};
                split_heads(index, qkv, head_stats, head_norms, scale, &eps, split.data());
                for (int64_t h = 0; h < H; h++) {
                    const Act *q = &split[index.split(0, 0, h)], *k = &split[index.split(1, 0, h)];
                    const Act *v = &split[index.split(2, 0, h)];
                    Act *p = attention + (b * H + h) * out_tokens * padded_N;
                    transpose(k, N, padded_K, padded_K / UNIT_SIZE, keys.data(), padded_N);
                    multiply(out_tokens, row_major(q, padded_K), keys.data(), padded_N, padded_K / UNIT_SIZE,
                             scores.data());
                    for (int64_t n = 0; n < out_tokens; n++) softmax(&scores[n * padded_N], p + n * padded_N, N);
                    pack_rows(v, N, padded_K, values.data(), padded_K);
                    multiply(out_tokens, row_major(p, padded_N), values.data(), padded_K, unit_count(N),
                             &head_outputs[index.split(0, 0, h)]);
                }
                for (int64_t n = 0; n < out_tokens; n++)
                    for (int64_t h = 0; h < H; h++) {
                        const float *head = &head_outputs[index.split(0, n, h)];
                        Act *to = merged + ((b * out_tokens + n) * H + h) * K;
                        for_each_vector(K, [&](int64_t i, auto) { store(to + i, load(head + i)); });
                    }
            }
            multiply(images * out_tokens, merged + first * out_tokens * D, D, proj_weight, y.data());
            for (int64_t b = 0; b < images; b++)
                for (int64_t n = 0; n < out_tokens; n++) {
                    const float *skip = x + (first_row + b * N + n) * D, *branch = &y[(b * out_tokens + n) * padded_D];
                    float *to = out + ((first + b) * out_tokens + n) * D;
                    for_each_vector(D, [&](int64_t i, auto done) {
                        store_new_lanes(to + i, load(skip + i) + load(branch + i) + load(proj_bias + i), done);
                    });
                }
        });
    });
}

// Computes dx [B, N, D] and the gradients of the weights from dout [B, out_tokens, D]. dx may be dout if out_tokens is
// N.
void attention_backward(const float *dout, float *dx, const Kept &kept, const Layer &layer, const Sizes &s,
                        int64_t out_tokens) {
    const int64_t B = s.B, N = s.N, H = s.H, K = s.K, D = s.D;
    const float *const *w = layer.weights, *head_norms = layer.head_norms.empty() ? nullptr : layer.head_norms.data();
    const float *norm = w[NORM1], *norm_bias = w[NORM1_BIAS], scale = 1.0f / __builtin_sqrtf(float(K));
    float *rstd = kept.rstd1;
    Statistics *head_stats = kept.head_stats;
    Act *normal = kept.normal1, *qkv = kept.qkv, *attention = kept.attention, *merged = kept.merged;
    int64_t padded_D = round_up(D), padded_K = round_up(K), padded_N = round_up(N);
    int64_t max_images = std::max<int64_t>(1, CHUNK_ROWS / N);
    const PackedWeight qkv_weight(w[QKV], 3 * D, D, BACKWARD), proj_weight(w[PROJ], D, D, BACKWARD);
    const Offsets offsets(layer, s, QKV, K_NORM_BIAS);
    parallel_sum(B, max_images, offsets.layout, [&](auto run) {
        std::vector<Act> dy(max_images * N * padded_D), h(max_images * N * padded_D), dqkv(max_images * N * 3 * D);
        std::vector<Act> split(3 * H * N * padded_K), dhead(out_tokens * padded_K), ds(out_tokens * padded_N);
        std::vector<Unit> values(padded_K / UNIT_SIZE * padded_N), right(unit_count(N) * padded_K);
        std::vector<Unit> left(unit_count(N) * padded_N),
            scratch(unit_count(max_images * N) * (round_up(3 * D) + padded_D));
        std::vector<float> y(max_images * N * padded_D), scores(out_tokens * padded_N), dsplit(3 * H * N * padded_K);
        run([&](int64_t first, int64_t images, float *sums) {
            auto sum = [&](int64_t field) { return sums + offsets.at[field]; };
            int64_t rows = images * N, out_rows = images * out_tokens, first_row = first * N;
            const float *dout_rows = dout + first * out_tokens * D;
            for (int64_t r = 0; r < out_rows; r++)
                for_each_vector(D, [&](int64_t i, auto) { store(&dy[r * padded_D + i], load(dout_rows + r * D + i)); });
            add_weight_gradient(out_rows, dy.data(), D, padded_D, merged + first * out_tokens * D, D, scratch.data(),
                                sum(PROJ), sum(PROJ_BIAS));
            multiply(out_rows, dy.data(), padded_D, proj_weight, y.data());
            for (int64_t b = first; b < first + images; b++) {
                HeadIndex index{b, N, H, K, padded_K};
                split_heads(index, qkv, head_stats, head_norms, scale, nullptr, split.data());
                for (int64_t h = 0; h < H; h++) {
                    int64_t parts[3] = {index.split(0, 0, h), index.split(1, 0, h), index.split(2, 0, h)};
                    const Act *p = attention + (b * H + h) * out_tokens * padded_N;
                    for (int64_t n = 0; n < out_tokens; n++) {
                        const float *drow = &y[((b - first) * out_tokens + n) * padded_D + h * K];
                        for_each_vector(K, [&](int64_t i, auto) { store(&dhead[n * padded_K + i], load(drow + i)); });
                    }
                    transpose(&split[parts[2]], N, padded_K, padded_K / UNIT_SIZE, values.data(), padded_N);
                    multiply(out_tokens, row_major(dhead.data(), padded_K), values.data(), padded_N,
                             padded_K / UNIT_SIZE, scores.data());
                    for (int64_t n = 0; n < out_tokens; n++)
                        softmax_backward(p + n * padded_N, &scores[n * padded_N], &ds[n * padded_N], N);
                    // With dp = dhead v^T in `scores`: dq = ds k, dk = ds^T q, dv = p^T dhead.
                    pack_rows(&split[parts[1]], N, padded_K, right.data(), padded_K);
                    multiply(out_tokens, row_major(ds.data(), padded_N), right.data(), padded_K, unit_count(N),
                             &dsplit[parts[0]]);
                    pack_rows(&split[parts[0]], out_tokens, padded_K, right.data(), padded_K);
                    pack_rows(ds.data(), out_tokens, padded_N, left.data(), padded_N);
                    multiply(N, {left.data(), 1, padded_N}, right.data(), padded_K, unit_count(out_tokens),
                             &dsplit[parts[1]]);
                    pack_rows(dhead.data(), out_tokens, padded_K, right.data(), padded_K);
                    pack_rows(p, out_tokens, padded_N, left.data(), padded_N);
                    multiply(N, {left.data(), 1, padded_N}, right.data(), padded_K, unit_count(out_tokens),
                             &dsplit[parts[2]]);
                }
                for (int64_t n = 0; n < N; n++)
                    for (int64_t part = 0; part < 3; part++)
                        for (int64_t h = 0; h < H; h++) {
                            const Act *before = qkv + index.qkv(n, part, h);
                            const float *drow = &dsplit[index.split(part, n, h)];
                            Act *to = &dqkv[index.qkv(n, part, h) - first_row * 3 * D];
                            float factor = part == 0 ? scale : 1.0f;
                            auto dnormed = [&](int64_t i) { return load(drow + i) * factor; };
                            auto store_dx = [&](int64_t i, auto, Vec v) { store(to + i, v); };
                            if (part == 2 || !head_norms)
                                for_each_vector(K, [&](int64_t i, auto done) { store_dx(i, done, dnormed(i)); });
                            else {
                                Statistics s = head_stats[index.statistics(n, part, h)];
                                norm_backward(
                                    K, s.rstd, head_norms + 2 * part * K, sum(Q_NORM + 2 * part),
                                    sum(Q_NORM_BIAS + 2 * part),
                                    [&](int64_t i) { return (load(before + i) - s.mean) * s.rstd; }, dnormed, store_dx);
                            }
                        }
            }
            normalize_again(rows, D, normal + first_row * D, norm, norm_bias, h.data(), padded_D);
            add_weight_gradient(rows, dqkv.data(), 3 * D, 3 * D, h.data(), padded_D, scratch.data(), sum(QKV),
                                sum(QKV_BIAS));
            multiply(rows, dqkv.data(), 3 * D, qkv_weight, y.data());
            for (int64_t r = 0; r < rows; r++) {
                const float *skip = dout_rows + (r / N * out_tokens + r % N) * D;
                const Act *before = normal + (first_row + r) * D;
                float *to = dx + (first_row + r) * D;
                bool has_skip = r % N < out_tokens; // other tokens reach the output through attention only
                norm_backward(
                    D, rstd[first_row + r], norm, sum(NORM1), sum(NORM1_BIAS),
                    [&](int64_t i) { return load(before + i); }, [&](int64_t i) { return load(&y[r * padded_D + i]); },
                    [&](int64_t i, auto done, Vec v) {
                        store_new_lanes(to + i, has_skip ? v + load(skip + i) : v, done);
                    });
            }
        });
    });
}

// out [B, tokens, D] = x + mlp(norm(x)) for x [B, tokens, D]. `inside` is dropout of the hidden units and `after` that
// of the output. `out` may be x.
void mlp_forward(const float *x, float *out, const Kept &kept, const Layer &layer, const Sizes &s, int64_t tokens,
                 float eps, const Dropout &inside, const Dropout &after) {
    const int64_t D = s.D, M = s.M, padded_D = round_up(D), padded_M = round_up(M);
    const float *const *w = layer.weights, *norm = w[NORM2], *norm_bias = w[NORM2_BIAS];
    const float *bias1 = w[FC1_BIAS], *bias2 = w[FC2_BIAS];
    float *rstd = kept.rstd2;
    Act *normal = kept.normal2, *slope = kept.slope, *hidden = kept.hidden;
    const PackedWeight fc1(w[FC1], M, D, FORWARD), fc2(w[FC2], D, M, FORWARD);
    parallel_chunks(s.B * tokens, CHUNK_ROWS, [&](auto run) {
        std::vector<Act> h(CHUNK_ROWS * padded_D);
        std::vector<float> y(CHUNK_ROWS * std::max(padded_D, padded_M));
        run([&](int64_t first, int64_t rows) {
            normalize(rows, D, x + first * D, rstd + first, normal + first * D, norm, norm_bias, eps, h.data(),
                      padded_D);
            multiply(rows, h.data(), padded_D, fc1, y.data());
            for (int64_t r = 0; r < rows; r++) {
                Act *hidden_row = hidden + (first + r) * padded_M, *slope_row = slope + (first + r) * padded_M;
                const RowDropout drop = inside.row(first + r, tokens, M);
                for_each_vector(M, [&](int64_t i, auto) {
                    ValueAndSlope gelu = gelu_with_slope(load(&y[r * padded_M + i]) + load(bias1 + i));
                    store(hidden_row + i, drop(gelu.value, i));
                    store(slope_row + i, drop(gelu.slope, i));
                });
                std::memset(hidden_row + M, 0, (padded_M - M) * sizeof(Act));
                std::memset(slope_row + M, 0, (padded_M - M) * sizeof(Act));
            }
            multiply(rows, hidden + first * padded_M, padded_M, fc2, y.data());
            for (int64_t r = 0; r < rows; r++) {
                const RowDropout drop = after.row(first + r, tokens, D);
                for_each_vector(D, [&](int64_t i, auto done) {
                    int64_t offset = (first + r) * D + i;
                    Vec branch = drop(load(&y[r * padded_D + i]) + load(bias2 + i), i);
                    store_new_lanes(out + offset, load(x + offset) + branch, done);
                });
            }
        });
    });
}

// Computes dx [B, tokens, D] and the gradients of the weights from dout [B, tokens, D]. dx may be dout.
void mlp_backward(const float *dout, float *dx, const Kept &kept, const Layer &layer, const Sizes &s, int64_t tokens,
                  const Dropout &after) {
    const int64_t D = s.D, M = s.M, padded_D = round_up(D), padded_M = round_up(M);
    const float *const *w = layer.weights, *norm = w[NORM2], *norm_bias = w[NORM2_BIAS];
    float *rstd = kept.rstd2;
    Act *normal = kept.normal2, *slope = kept.slope, *hidden = kept.hidden;
    const PackedWeight fc1(w[FC1], M, D, BACKWARD), fc2(w[FC2], D, M, BACKWARD);
    const Offsets offsets(layer, s, FC1, NORM2_BIAS);
    parallel_sum(s.B * tokens, CHUNK_ROWS, offsets.layout, [&](auto run) {
        std::vector<Act> dy(CHUNK_ROWS * padded_D), h(CHUNK_ROWS * padded_D), dhidden(CHUNK_ROWS * padded_M);
        std::vector<Unit> scratch(unit_count(CHUNK_ROWS) * (padded_D + padded_M));
        std::vector<float> y(CHUNK_ROWS * std::max(padded_D, padded_M));
        run([&](int64_t first, int64_t rows, float *sums) {
            auto sum = [&](int64_t field) { return sums + offsets.at[field]; };
            for (int64_t r = 0; r < rows; r++) {
                const RowDropout drop = after.row(first + r, tokens, D);
                for_each_vector(D, [&](int64_t i, auto) {
                    store(&dy[r * padded_D + i], drop(load(dout + (first + r) * D + i), i));
                });
            }
            add_weight_gradient(rows, dy.data(), D, padded_D, hidden + first * padded_M, padded_M, scratch.data(),
                                sum(FC2), sum(FC2_BIAS));
            multiply(rows, dy.data(), padded_D, fc2, y.data());
            for (int64_t r = 0; r < rows; r++)
                for_each_vector(M, [&](int64_t i, auto) {
                    store(&dhidden[r * padded_M + i],
                          load(&y[r * padded_M + i]) * load(slope + (first + r) * padded_M + i));
                });
            normalize_again(rows, D, normal + first * D, norm, norm_bias, h.data(), padded_D);
            add_weight_gradient(rows, dhidden.data(), M, padded_M, h.data(), padded_D, scratch.data(), sum(FC1),
                                sum(FC1_BIAS));
            multiply(rows, dhidden.data(), padded_M, fc1, y.data());
            for (int64_t r = 0; r < rows; r++) {
                int64_t offset = (first + r) * D;
                norm_backward(
                    D, rstd[first + r], norm, sum(NORM2), sum(NORM2_BIAS),
                    [&](int64_t i) { return load(normal + offset + i); },
                    [&](int64_t i) { return load(&y[r * padded_D + i]); },
                    [&](int64_t i, auto done, Vec v) {
                        store_new_lanes(dx + offset + i, v + load(dout + offset + i), done);
                    });
            }
        });
    });
}

// The arguments that both passes share: sizes [layers, kept layers, out_tokens, B, N, H, K, M, dropout's threshold],
// and dropout's scale as the last number.
struct EncoderSizes {
    int64_t layers, kept_layers, out_tokens;
    Sizes s;
    uint32_t threshold;
    explicit EncoderSizes(Arguments &arguments) {
        layers = arguments.size(1, 1 << 16);
        kept_layers = arguments.size(1, layers);
        out_tokens = arguments.size(1);
        s.B = arguments.size(1);
        s.N = arguments.size(MIN_WIDTH);
        s.H = arguments.size(1);
        s.K = arguments.size(MIN_WIDTH);
        s.M = arguments.size(MIN_WIDTH);
        threshold = uint32_t(arguments.size(0, UINT32_MAX));
        s.D = checked_product(s.H, s.K);
        if (s.K % 2 || s.D > MAX_SIZE || out_tokens > s.N) throw Refusal(BAD_SIZE);
        if (kept_layers != 1 && kept_layers != layers) throw Refusal(BAD_SIZE, 2);
    }
    int64_t elements(int64_t tokens) const { return checked_product(s.B, tokens, s.D); }
    Dropout dropout(Arguments &arguments) const {
        const int32_t *keys = arguments.tensor<int32_t>(checked_product(layers, 2, s.B), threshold == 0);
        return {threshold, arguments.number(), keys};
    }
    // One `Kept` for each layer. If there will be no backward pass, just one, which all layers use in turn.
    std::vector<Kept> read_kept(Arguments &arguments, const std::vector<Layer> &weights, bool forward) const {
        auto cut_layers = [&](Cutter cutter) {
            std::vector<Kept> kept;
            for (int64_t i = 0; i < kept_layers; i++)
                kept.emplace_back(cutter, s, i + 1 == layers ? out_tokens : s.N, !weights[0].head_norms.empty());
            return std::pair(kept, cutter.bytes);
        };
        const int64_t bytes = cut_layers(Cutter(nullptr)).second;
        return cut_layers(Cutter(arguments.tensor<uint8_t>(bytes), forward)).first;
    }
    std::vector<Layer> read_layers(Arguments &arguments) const {
        std::vector<Layer> weights;
        for (int64_t i = 0; i < layers; i++) {
            weights.emplace_back(arguments, s);
            if (weights[i].head_norms.size() != weights[0].head_norms.size())
                throw Refusal(MISSING, arguments.read_tensors());
        }
        return weights;
    }
};

} // namespace

// All layers, from x [B, N, D] to out [B, out_tokens, D]: in the last layer, only the first `out_tokens` tokens attend
// to all N and go through the MLP. `kept` has memory for all layers, or for one if there will be no backward pass.
// Tensors: x, out, keys, weights, kept. Numbers: eps, dropout's scale.
KERNEL(encoder) {
    const EncoderSizes e(arguments);
    const float *x = arguments.tensor<float>(e.elements(e.s.N));
    float *out = arguments.tensor<float>(e.elements(e.out_tokens));
    const float eps = arguments.number();
    const Dropout dropout = e.dropout(arguments);
    const std::vector<Layer> layers = e.read_layers(arguments);
    const std::vector<Kept> kept = e.read_kept(arguments, layers, true);
    arguments.end();

    std::unique_ptr<float[]> stream(new float[e.elements(e.s.N)]); // tokens between layers, updated in place
    for (int64_t i = 0; i < e.layers; i++) {
        const Kept &k = kept[i % e.kept_layers];
        bool last = i + 1 == e.layers;
        int64_t tokens = last ? e.out_tokens : e.s.N;
        float *to = last ? out : stream.get();
        attention_forward(i ? stream.get() : x, to, k, layers[i], e.s, tokens, eps);
        mlp_forward(to, to, k, layers[i], e.s, tokens, eps, dropout.site(2 * i, e.s.B), dropout.site(2 * i + 1, e.s.B));
    }
}

// From dout [B, out_tokens, D] to dx [B, N, D] and to the gradients of all weights that exist, flat, in the order of
// `Field` and layer by layer. Tensors: dout, dx, keys, weights, kept, gradients. Numbers: dropout's scale.
KERNEL(encoder_backward) {
    const EncoderSizes e(arguments);
    if (e.kept_layers != e.layers) throw Refusal(BAD_SIZE, 2);
    const float *dout = arguments.tensor<float>(e.elements(e.out_tokens));
    float *dx = arguments.tensor<float>(e.elements(e.s.N));
    const Dropout dropout = e.dropout(arguments);
    std::vector<Layer> layers = e.read_layers(arguments);
    const std::vector<Kept> kept = e.read_kept(arguments, layers, false);
    int64_t total = 0;
    for (const Layer &layer : layers) total = checked_sum(total, layer.elements(e.s));
    float *gradients = arguments.tensor<float>(total);
    arguments.end();

    for (Layer &layer : layers) gradients += layer.place_gradients(gradients, e.s);
    // The gradient between MLP and attention: for the last layer [B, out_tokens, D]; other layers work in place.
    std::unique_ptr<float[]> dlast(new float[e.elements(e.out_tokens)]);
    for (int64_t i = e.layers - 1; i >= 0; i--) {
        bool last = i + 1 == e.layers;
        int64_t tokens = last ? e.out_tokens : e.s.N;
        float *dmiddle = last ? dlast.get() : dx;
        mlp_backward(last ? dout : dx, dmiddle, kept[i], layers[i], e.s, tokens, dropout.site(2 * i + 1, e.s.B));
        attention_backward(dmiddle, dx, kept[i], layers[i], e.s, tokens);
    }
}
