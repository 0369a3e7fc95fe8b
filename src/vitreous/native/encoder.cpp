// The encoder: attention and MLP of every layer. A few pictures at a time go from one end of a branch to the other in a
// core's own cache, products and all; what the backward pass needs is written on the way.
//
// B pictures, N tokens, H heads, K width of a head, D = H K width of a token, M width of the MLP. The stream of tokens
// and all sums are float32; what is kept and multiplied is `Act`.

#include "arguments.h"
#include "norms.h"
#include "parallel.h"
#include "products.h"

namespace {

struct Sizes {
    int64_t B, N, H, K, M, D;
};

// The weights of a layer, in the order in which they are passed (ops.py) and their gradients are returned.
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
    std::vector<float> head_norms; // [4, K]: weight and bias of q's norm, then of k's; empty if there are none

    Layer(Arguments &arguments, const Sizes &s) {
        for (int64_t i = 0; i < FIELDS; i++) {
            Shape each = shape(i, s);
            weights[i] = arguments.tensor<float>(checked_product(each.rows, each.columns), each.optional);
        }
        int64_t given = 0;
        for (int64_t i = Q_NORM; i <= K_NORM_BIAS; i++) given += weights[i] != nullptr;
        if (given % 4) throw Refusal(MISSING, arguments.read_tensors());
        for (int64_t i = Q_NORM; given && i <= K_NORM_BIAS; i++)
            head_norms.insert(head_norms.end(), weights[i], weights[i] + s.K);
    }

    // Takes the places of the gradients of the weights that exist, one after another; returns how many elements.
    int64_t place_gradients(float *at, const Sizes &s) {
        float *start = at;
        for (int64_t i = 0; i < FIELDS; i++)
            if (weights[i]) {
                gradients[i] = at;
                at += shape(i, s).rows * shape(i, s).columns;
            }
        return at - start;
    }
    int64_t elements(const Sizes &s) const {
        int64_t sum = 0;
        for (int64_t i = 0; i < FIELDS; i++)
            if (weights[i]) sum += shape(i, s).rows * shape(i, s).columns;
        return sum;
    }
};

// Offsets in a private copy of the sums of fields [first, last].
struct Offsets {
    SumLayout layout;
    int64_t at[FIELDS] = {};
    Offsets(const Layer &layer, const Sizes &s, Field first, Field last) {
        for (int64_t i = first; i <= last; i++)
            at[i] = layout.add(shape(i, s).rows, shape(i, s).columns, layer.gradients[i]);
    }
};

// What a layer keeps for its backward pass; T is the number of tokens that it works on after attention has read all N.
// Python computes the same number of bytes in `kept_bytes`.
struct Kept {
    float *rstd1, *rstd2;   // [B, N] and [B, T], of the layer norms
    Statistics *head_stats; // [B, N, 2, H], of the norms of q and k, if there are any
    Act *normal1, *normal2; // [B, N, D] and [B, T, D], the layer norms before weight and bias
    Act *qkv;               // [B, N, 3, H, K]
    Act *attention;         // [B, H, T, padded N], the softmax, then zeros
    Act *merged;            // [B, T, H, K], the heads' output
    Act *slope, *hidden;    // [B, T, padded M], GELU's slope and GELU, both after dropout, then zeros
    Kept(Cutter &cutter, const Sizes &s, int64_t T, bool normed) {
        int64_t rows = checked_product(s.B, s.N), last_rows = checked_product(s.B, T);
        cutter.cut(rstd1, rows);
        cutter.cut(rstd2, last_rows);
        cutter.cut(head_stats, checked_product(normed ? rows : 0, 2 * s.H));
        cutter.cut(normal1, checked_product(rows, s.D));
        cutter.cut(qkv, checked_product(rows, 3 * s.D));
        cutter.cut(attention, checked_product(last_rows, s.H, round_up(s.N)));
        cutter.cut(merged, checked_product(last_rows, s.D));
        cutter.cut(normal2, checked_product(last_rows, s.D));
        cutter.cut(slope, checked_product(last_rows, round_up(s.M)));
        cutter.cut(hidden, checked_product(last_rows, round_up(s.M)));
    }
};

// Dropout of one row of tokens at one site, as model/dropout.py defines it: element j, counted within the sample, is
// kept if lowbias32(j * 0x9e3779b1 + key) >= threshold (C. Wellons' hash). So the backward pass finds the same mask
// again.
struct RowDropout {
    uint32_t threshold, key, first; // first: the row's first element within its sample
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
struct Dropout {
    uint32_t threshold; // 0: no dropout, and no keys
    float scale;
    const int32_t *keys; // [layers, 2, B]: inside the MLP, and of its output
    Dropout site(int64_t number, int64_t B) const { return {threshold, scale, keys ? keys + number * B : nullptr}; }
    RowDropout row(int64_t row, int64_t tokens, int64_t width) const {
        if (!threshold) return {0, 0, 0, scale};
        return {threshold, uint32_t(keys[row / tokens]), uint32_t(row % tokens * width), scale};
    }
};

// Softmax of N scores; the padding up to whole registers is zeroed.
void softmax(float *scores, Act *weights, int64_t N) {
    int64_t last = (N - 1) / LANES * LANES;
    auto inside = LANE < int(N - last);
    Vec end = inside ? load(scores + last) : broadcast(-INFINITY), most = end, sum = {};
    for (int64_t c = 0; c < last; c += LANES) most = maximum(most, load(scores + c));
    float peak = max_lanes(most);
    for (int64_t c = 0; c < last; c += LANES) {
        Vec v = exp_nonpositive(load(scores + c) - peak);
        store(scores + c, v);
        sum += v;
    }
    end = inside ? exp_nonpositive(end - peak) : broadcast(0.0f);
    float factor = 1.0f / sum_lanes(sum + end);
    for (int64_t c = 0; c < last; c += LANES) store(weights + c, load(scores + c) * factor);
    store(weights + last, end * factor);
    for (int64_t c = last + LANES; c < round_up(N); c += LANES) store(weights + c, Vec{});
}

// ds = p (dp - mean of dp weighted by p). The zeros that pad p make zeros.
void softmax_backward(const Act *p, const float *dp, Act *ds, int64_t N) {
    Vec sum = {};
    for (int64_t c = 0; c < N; c += LANES) sum += load(p + c) * load(dp + c);
    float mean = sum_lanes(sum);
    for (int64_t c = 0; c < round_up(N); c += LANES) store(ds + c, load(p + c) * (load(dp + c) - mean));
}

// Where the parts of picture b's heads are. Each array has the order in which its reader goes through memory.
struct HeadIndex {
    int64_t b, N, H, K, width; // width: K, padded
    int64_t qkv(int64_t n, int64_t part, int64_t h) const { return (((b * N + n) * 3 + part) * H + h) * K; }
    int64_t statistics(int64_t n, int64_t part, int64_t h) const { return ((b * N + n) * 2 + part) * H + h; }
    int64_t split(int64_t part, int64_t n, int64_t h) const { return ((part * H + h) * N + n) * width; }
};

// Copies q, k and v of one picture to `split` [3, H, N, width]: q and k through their norms if there are `head_norms`,
// q scaled. Computes `stats` if `eps` is given; otherwise they are known.
void split_heads(HeadIndex at, const Act *qkv, Statistics *stats, const float *head_norms, float scale,
                 const float *eps, Act *split) {
    int64_t K = at.K;
    for (int64_t n = 0; n < at.N; n++)
        for (int64_t part = 0; part < 3; part++)
            for (int64_t h = 0; h < at.H; h++) {
                const Act *from = qkv + at.qkv(n, part, h);
                Act *to = split + at.split(part, n, h);
                float factor = part == 0 ? scale : 1.0f;
                auto x = [&](int64_t i) { return load(from + i); };
                if (part == 2 || !head_norms) {
                    for_each_vector(K, [&](int64_t i, auto) { store(to + i, x(i) * factor); });
                    continue;
                }
                const float *weight = head_norms + 2 * part * K;
                Statistics &s = stats[at.statistics(n, part, h)];
                if (eps) s = statistics(K, *eps, x);
                for_each_vector(K, [&](int64_t i, auto) {
                    Vec normal = (x(i) - s.mean) * s.rstd;
                    store(to + i, (normal * load(weight + i) + load(weight + K + i)) * factor);
                });
            }
}

// out [B, wanted, D] = the first `wanted` tokens of x [B, N, D] + attention(norm(x)). `out` may be x if all are wanted.
void attention_forward(const float *x, float *out, const Kept &kept, const Layer &layer, const Sizes &s, int64_t wanted,
                       float eps) {
    const int64_t B = s.B, N = s.N, H = s.H, K = s.K, D = s.D;
    const float *const *w = layer.weights, *head_norms = layer.head_norms.empty() ? nullptr : layer.head_norms.data();
    const float *norm = w[NORM1], *norm_bias = w[NORM1_BIAS], scale = 1.0f / __builtin_sqrtf(float(K));
    float *rstd = kept.rstd1;
    Statistics *head_stats = kept.head_stats;
    Act *normal = kept.normal1, *qkv = kept.qkv, *attention = kept.attention, *merged = kept.merged;
    int64_t wide = round_up(D), width = round_up(K), length = round_up(N);
    int64_t most = std::max<int64_t>(1, CHUNK_ROWS / N);
    const PackedWeight joined(w[QKV], 3 * D, D, FORWARD), back(w[PROJ], D, D, FORWARD);
    const std::vector<float> zeros(w[QKV_BIAS] ? 0 : 3 * D);
    const float *bias = w[QKV_BIAS] ? w[QKV_BIAS] : zeros.data(), *proj_bias = w[PROJ_BIAS];
    parallel_chunks(B, most, [&](auto run) {
        // The padding of rows and columns stays zero from picture to picture.
        std::vector<Act> h(most * N * wide), split(3 * H * N * width);
        std::vector<Unit> keys(width / UNIT_SIZE * length), values(unit_count(N) * width);
        std::vector<float> y(most * N * joined.width), scores(wanted * length), heads(H * N * width);
        run([&](int64_t start, int64_t pictures) {
            int64_t rows = pictures * N, from = start * N;
            normalize(rows, D, x + from * D, rstd + from, normal + from * D, norm, norm_bias, eps, h.data(), wide);
            multiply(rows, h.data(), wide, joined, y.data());
            for (int64_t r = 0; r < rows; r++)
                for_each_vector(3 * D, [&](int64_t i, auto) {
                    store(qkv + (from + r) * 3 * D + i, load(&y[r * joined.width + i]) + load(bias + i));
                });
            for (int64_t b = start; b < start + pictures; b++) {
                HeadIndex at{b, N, H, K, width};
                split_heads(at, qkv, head_stats, head_norms, scale, &eps, split.data());
                for (int64_t h = 0; h < H; h++) {
                    const Act *q = &split[at.split(0, 0, h)], *k = &split[at.split(1, 0, h)];
                    const Act *v = &split[at.split(2, 0, h)];
                    Act *p = attention + (b * H + h) * wanted * length;
                    transpose(k, N, width, width / UNIT_SIZE, keys.data(), length);
                    multiply(wanted, row_major(q, width), keys.data(), length, width / UNIT_SIZE, scores.data());
                    for (int64_t n = 0; n < wanted; n++) softmax(&scores[n * length], p + n * length, N);
                    pack_rows(v, N, width, values.data(), width);
                    multiply(wanted, row_major(p, length), values.data(), width, unit_count(N),
                             &heads[at.split(0, 0, h)]);
                }
                for (int64_t n = 0; n < wanted; n++)
                    for (int64_t h = 0; h < H; h++) {
                        const float *head = &heads[at.split(0, n, h)];
                        Act *to = merged + ((b * wanted + n) * H + h) * K;
                        for_each_vector(K, [&](int64_t i, auto) { store(to + i, load(head + i)); });
                    }
            }
            multiply(pictures * wanted, merged + start * wanted * D, D, back, y.data());
            for (int64_t b = 0; b < pictures; b++)
                for (int64_t n = 0; n < wanted; n++) {
                    const float *skip = x + (from + b * N + n) * D, *branch = &y[(b * wanted + n) * wide];
                    float *to = out + ((start + b) * wanted + n) * D;
                    for_each_vector(D, [&](int64_t i, auto done) {
                        store_new_lanes(to + i, load(skip + i) + load(branch + i) + load(proj_bias + i), done);
                    });
                }
        });
    });
}

// From dout [B, wanted, D] to dx [B, N, D], which may be the same memory if all tokens are wanted.
void attention_backward(const float *dout, float *dx, const Kept &kept, const Layer &layer, const Sizes &s,
                        int64_t wanted) {
    const int64_t B = s.B, N = s.N, H = s.H, K = s.K, D = s.D;
    const float *const *w = layer.weights, *head_norms = layer.head_norms.empty() ? nullptr : layer.head_norms.data();
    const float *norm = w[NORM1], *norm_bias = w[NORM1_BIAS], scale = 1.0f / __builtin_sqrtf(float(K));
    float *rstd = kept.rstd1;
    Statistics *head_stats = kept.head_stats;
    Act *normal = kept.normal1, *qkv = kept.qkv, *attention = kept.attention, *merged = kept.merged;
    int64_t wide = round_up(D), width = round_up(K), length = round_up(N);
    int64_t most = std::max<int64_t>(1, CHUNK_ROWS / N);
    const PackedWeight joined(w[QKV], 3 * D, D, BACKWARD), back(w[PROJ], D, D, BACKWARD);
    const Offsets offsets(layer, s, QKV, K_NORM_BIAS);
    parallel_sum(B, most, offsets.layout, [&](auto run) {
        std::vector<Act> half(most * N * wide), h(most * N * wide), dqkv(most * N * 3 * D);
        std::vector<Act> split(3 * H * N * width), grad(wanted * width), ds(wanted * length);
        std::vector<Unit> values(width / UNIT_SIZE * length), right(unit_count(N) * width);
        std::vector<Unit> left(unit_count(N) * length), scratch(unit_count(most * N) * (round_up(3 * D) + wide));
        std::vector<float> y(most * N * wide), scores(wanted * length), d(3 * H * N * width);
        run([&](int64_t start, int64_t pictures, float *sums) {
            auto sum = [&](int64_t field) { return sums + offsets.at[field]; };
            int64_t rows = pictures * N, out_rows = pictures * wanted, from = start * N;
            const float *given = dout + start * wanted * D;
            for (int64_t r = 0; r < out_rows; r++)
                for_each_vector(D, [&](int64_t i, auto) { store(&half[r * wide + i], load(given + r * D + i)); });
            add_weight_gradient(out_rows, half.data(), D, wide, merged + start * wanted * D, D, scratch.data(),
                                sum(PROJ), sum(PROJ_BIAS));
            multiply(out_rows, half.data(), wide, back, y.data());
            for (int64_t b = start; b < start + pictures; b++) {
                HeadIndex at{b, N, H, K, width};
                split_heads(at, qkv, head_stats, head_norms, scale, nullptr, split.data());
                for (int64_t h = 0; h < H; h++) {
                    int64_t parts[3] = {at.split(0, 0, h), at.split(1, 0, h), at.split(2, 0, h)};
                    const Act *p = attention + (b * H + h) * wanted * length;
                    for (int64_t n = 0; n < wanted; n++) {
                        const float *own = &y[((b - start) * wanted + n) * wide + h * K];
                        for_each_vector(K, [&](int64_t i, auto) { store(&grad[n * width + i], load(own + i)); });
                    }
                    transpose(&split[parts[2]], N, width, width / UNIT_SIZE, values.data(), length);
                    multiply(wanted, row_major(grad.data(), width), values.data(), length, width / UNIT_SIZE,
                             scores.data());
                    for (int64_t n = 0; n < wanted; n++)
                        softmax_backward(p + n * length, &scores[n * length], &ds[n * length], N);
                    // dq = ds k, dk = ds^T q, dv = p^T grad
                    pack_rows(&split[parts[1]], N, width, right.data(), width);
                    multiply(wanted, row_major(ds.data(), length), right.data(), width, unit_count(N), &d[parts[0]]);
                    pack_rows(&split[parts[0]], wanted, width, right.data(), width);
                    pack_rows(ds.data(), wanted, length, left.data(), length);
                    multiply(N, {left.data(), 1, length}, right.data(), width, unit_count(wanted), &d[parts[1]]);
                    pack_rows(grad.data(), wanted, width, right.data(), width);
                    pack_rows(p, wanted, length, left.data(), length);
                    multiply(N, {left.data(), 1, length}, right.data(), width, unit_count(wanted), &d[parts[2]]);
                }
                for (int64_t n = 0; n < N; n++)
                    for (int64_t part = 0; part < 3; part++)
                        for (int64_t h = 0; h < H; h++) {
                            const Act *before = qkv + at.qkv(n, part, h);
                            const float *own = &d[at.split(part, n, h)];
                            Act *to = &dqkv[at.qkv(n, part, h) - from * 3 * D];
                            float factor = part == 0 ? scale : 1.0f;
                            auto dy = [&](int64_t i) { return load(own + i) * factor; };
                            auto take = [&](int64_t i, auto, Vec v) { store(to + i, v); };
                            if (part == 2 || !head_norms)
                                for_each_vector(K, [&](int64_t i, auto done) { take(i, done, dy(i)); });
                            else {
                                Statistics s = head_stats[at.statistics(n, part, h)];
                                norm_backward(
                                    K, s.rstd, head_norms + 2 * part * K, sum(Q_NORM + 2 * part),
                                    sum(Q_NORM_BIAS + 2 * part),
                                    [&](int64_t i) { return (load(before + i) - s.mean) * s.rstd; }, dy, take);
                            }
                        }
            }
            normalize_again(rows, D, normal + from * D, norm, norm_bias, h.data(), wide);
            add_weight_gradient(rows, dqkv.data(), 3 * D, 3 * D, h.data(), wide, scratch.data(), sum(QKV),
                                sum(QKV_BIAS));
            multiply(rows, dqkv.data(), 3 * D, joined, y.data());
            for (int64_t r = 0; r < rows; r++) {
                const float *skip = given + (r / N * wanted + r % N) * D;
                const Act *before = normal + (from + r) * D;
                float *to = dx + (from + r) * D;
                bool skipped = r % N < wanted;
                norm_backward(
                    D, rstd[from + r], norm, sum(NORM1), sum(NORM1_BIAS), [&](int64_t i) { return load(before + i); },
                    [&](int64_t i) { return load(&y[r * wide + i]); },
                    [&](int64_t i, auto done, Vec v) {
                        store_new_lanes(to + i, skipped ? v + load(skip + i) : v, done);
                    });
            }
        });
    });
}

// out [B, tokens, D] = x + mlp(norm(x)), with dropout inside and at the end. `out` may be x.
void mlp_forward(const float *x, float *out, const Kept &kept, const Layer &layer, const Sizes &s, int64_t tokens,
                 float eps, const Dropout &inside, const Dropout &after) {
    const int64_t D = s.D, M = s.M, wide = round_up(D), deep = round_up(M);
    const float *const *w = layer.weights, *norm = w[NORM2], *norm_bias = w[NORM2_BIAS];
    const float *bias1 = w[FC1_BIAS], *bias2 = w[FC2_BIAS];
    float *rstd = kept.rstd2;
    Act *normal = kept.normal2, *slope = kept.slope, *hidden = kept.hidden;
    const PackedWeight up(w[FC1], M, D, FORWARD), down(w[FC2], D, M, FORWARD);
    parallel_chunks(s.B * tokens, CHUNK_ROWS, [&](auto run) {
        std::vector<Act> h(CHUNK_ROWS * wide);
        std::vector<float> y(CHUNK_ROWS * std::max(wide, deep));
        run([&](int64_t from, int64_t rows) {
            normalize(rows, D, x + from * D, rstd + from, normal + from * D, norm, norm_bias, eps, h.data(), wide);
            multiply(rows, h.data(), wide, up, y.data());
            for (int64_t r = 0; r < rows; r++) {
                Act *value = hidden + (from + r) * deep, *steep = slope + (from + r) * deep;
                const RowDropout drop = inside.row(from + r, tokens, M);
                for_each_vector(M, [&](int64_t i, auto) {
                    ValueAndSlope gelu = gelu_with_slope(load(&y[r * deep + i]) + load(bias1 + i));
                    store(value + i, drop(gelu.value, i));
                    store(steep + i, drop(gelu.slope, i));
                });
                std::memset(value + M, 0, (deep - M) * sizeof(Act));
                std::memset(steep + M, 0, (deep - M) * sizeof(Act));
            }
            multiply(rows, hidden + from * deep, deep, down, y.data());
            for (int64_t r = 0; r < rows; r++) {
                const RowDropout drop = after.row(from + r, tokens, D);
                for_each_vector(D, [&](int64_t i, auto done) {
                    int64_t place = (from + r) * D + i;
                    Vec branch = drop(load(&y[r * wide + i]) + load(bias2 + i), i);
                    store_new_lanes(out + place, load(x + place) + branch, done);
                });
            }
        });
    });
}

// From dout [B, tokens, D] to dx, which may be the same memory.
void mlp_backward(const float *dout, float *dx, const Kept &kept, const Layer &layer, const Sizes &s, int64_t tokens,
                  const Dropout &after) {
    const int64_t D = s.D, M = s.M, wide = round_up(D), deep = round_up(M);
    const float *const *w = layer.weights, *norm = w[NORM2], *norm_bias = w[NORM2_BIAS];
    float *rstd = kept.rstd2;
    Act *normal = kept.normal2, *slope = kept.slope, *hidden = kept.hidden;
    const PackedWeight up(w[FC1], M, D, BACKWARD), down(w[FC2], D, M, BACKWARD);
    const Offsets offsets(layer, s, FC1, NORM2_BIAS);
    parallel_sum(s.B * tokens, CHUNK_ROWS, offsets.layout, [&](auto run) {
        std::vector<Act> half(CHUNK_ROWS * wide), h(CHUNK_ROWS * wide), du(CHUNK_ROWS * deep);
        std::vector<Unit> scratch(unit_count(CHUNK_ROWS) * (wide + deep));
        std::vector<float> y(CHUNK_ROWS * std::max(wide, deep));
        run([&](int64_t from, int64_t rows, float *sums) {
            auto sum = [&](int64_t field) { return sums + offsets.at[field]; };
            for (int64_t r = 0; r < rows; r++) {
                const RowDropout drop = after.row(from + r, tokens, D);
                for_each_vector(
                    D, [&](int64_t i, auto) { store(&half[r * wide + i], drop(load(dout + (from + r) * D + i), i)); });
            }
            add_weight_gradient(rows, half.data(), D, wide, hidden + from * deep, deep, scratch.data(), sum(FC2),
                                sum(FC2_BIAS));
            multiply(rows, half.data(), wide, down, y.data());
            for (int64_t r = 0; r < rows; r++)
                for_each_vector(M, [&](int64_t i, auto) {
                    store(&du[r * deep + i], load(&y[r * deep + i]) * load(slope + (from + r) * deep + i));
                });
            normalize_again(rows, D, normal + from * D, norm, norm_bias, h.data(), wide);
            add_weight_gradient(rows, du.data(), M, deep, h.data(), wide, scratch.data(), sum(FC1), sum(FC1_BIAS));
            multiply(rows, du.data(), deep, up, y.data());
            for (int64_t r = 0; r < rows; r++) {
                int64_t place = (from + r) * D;
                norm_backward(
                    D, rstd[from + r], norm, sum(NORM2), sum(NORM2_BIAS),
                    [&](int64_t i) { return load(normal + place + i); },
                    [&](int64_t i) { return load(&y[r * wide + i]); },
                    [&](int64_t i, auto done, Vec v) {
                        store_new_lanes(dx + place + i, v + load(dout + place + i), done);
                    });
            }
        });
    });
}

// What both passes are given: sizes [layers, kept layers, wanted, B, N, H, K, M, threshold] and, at the end of the
// numbers, dropout's scale.
struct EncoderSizes {
    int64_t layers, kept_layers, wanted;
    Sizes s;
    uint32_t threshold;
    explicit EncoderSizes(Arguments &arguments) {
        layers = arguments.size(1, 1 << 16);
        kept_layers = arguments.size(1, layers);
        wanted = arguments.size(1);
        s.B = arguments.size(1);
        s.N = arguments.size(MIN_WIDTH);
        s.H = arguments.size(1);
        s.K = arguments.size(MIN_WIDTH);
        s.M = arguments.size(MIN_WIDTH);
        threshold = uint32_t(arguments.size(0, UINT32_MAX));
        s.D = checked_product(s.H, s.K);
        if (s.K % 2 || s.D > MAX_SIZE || wanted > s.N) throw Refusal(BAD_SIZE);
        if (kept_layers != 1 && kept_layers != layers) throw Refusal(BAD_SIZE, 2);
    }
    int64_t elements(int64_t tokens) const { return checked_product(s.B, tokens, s.D); }
    Dropout dropout(Arguments &arguments) const {
        const int32_t *keys = arguments.tensor<int32_t>(checked_product(layers, 2, s.B), threshold == 0);
        return {threshold, arguments.number(), keys};
    }
    // For each layer; or, without a backward pass, one that all layers use in turn.
    std::vector<Kept> kept(Arguments &arguments, const std::vector<Layer> &weights, bool forward) const {
        auto cut = [&](Cutter cutter) {
            std::vector<Kept> found;
            for (int64_t i = 0; i < kept_layers; i++)
                found.emplace_back(cutter, s, i + 1 == layers ? wanted : s.N, !weights[0].head_norms.empty());
            return std::pair(found, cutter.bytes);
        };
        const int64_t bytes = cut(Cutter(nullptr)).second;
        return cut(Cutter(arguments.tensor<uint8_t>(bytes), forward)).first;
    }
    std::vector<Layer> read_layers(Arguments &arguments) const {
        std::vector<Layer> found;
        for (int64_t i = 0; i < layers; i++) {
            found.emplace_back(arguments, s);
            if (found[i].head_norms.size() != found[0].head_norms.size())
                throw Refusal(MISSING, arguments.read_tensors());
        }
        return found;
    }
};

} // namespace

// All layers, from x [B, N, D] to out [B, wanted, D]: the last one works on the first `wanted` tokens only, once
// attention has read them all. `kept` has room for all layers, or for one if there will be no backward pass.
// Tensors: x, out, keys, weights, kept. Numbers: eps, scale.
KERNEL(encoder) {
    const EncoderSizes e(arguments);
    const float *x = arguments.tensor<float>(e.elements(e.s.N));
    float *out = arguments.tensor<float>(e.elements(e.wanted));
    const float eps = arguments.number();
    const Dropout dropout = e.dropout(arguments);
    const std::vector<Layer> layers = e.read_layers(arguments);
    const std::vector<Kept> kept = e.kept(arguments, layers, true);
    arguments.end();

    std::unique_ptr<float[]> stream(new float[e.elements(e.s.N)]); // between layers, which work in place
    for (int64_t i = 0; i < e.layers; i++) {
        const Kept &k = kept[i % e.kept_layers];
        bool last = i + 1 == e.layers;
        int64_t tokens = last ? e.wanted : e.s.N;
        float *to = last ? out : stream.get();
        attention_forward(i ? stream.get() : x, to, k, layers[i], e.s, tokens, eps);
        mlp_forward(to, to, k, layers[i], e.s, tokens, eps, dropout.site(2 * i, e.s.B), dropout.site(2 * i + 1, e.s.B));
    }
}

// From dout [B, wanted, D] to dx [B, N, D] and the gradients of all weights that exist, one after another in their
// order. Tensors: dout, dx, keys, weights, kept, gradients. Numbers: scale.
KERNEL(encoder_backward) {
    const EncoderSizes e(arguments);
    if (e.kept_layers != e.layers) throw Refusal(BAD_SIZE, 2);
    const float *dout = arguments.tensor<float>(e.elements(e.wanted));
    float *dx = arguments.tensor<float>(e.elements(e.s.N));
    const Dropout dropout = e.dropout(arguments);
    std::vector<Layer> layers = e.read_layers(arguments);
    const std::vector<Kept> kept = e.kept(arguments, layers, false);
    int64_t total = 0;
    for (const Layer &layer : layers) total = checked_sum(total, layer.elements(e.s));
    float *gradients = arguments.tensor<float>(total);
    arguments.end();

    for (Layer &layer : layers) gradients += layer.place_gradients(gradients, e.s);
    std::unique_ptr<float[]> shorter(new float[e.elements(e.wanted)]); // of the last layer; others work in place
    for (int64_t i = e.layers - 1; i >= 0; i--) {
        bool last = i + 1 == e.layers;
        int64_t tokens = last ? e.wanted : e.s.N;
        float *middle = last ? shorter.get() : dx;
        mlp_backward(last ? dout : dx, middle, kept[i], layers[i], e.s, tokens, dropout.site(2 * i + 1, e.s.B));
        attention_backward(middle, dx, kept[i], layers[i], e.s, tokens);
    }
}
