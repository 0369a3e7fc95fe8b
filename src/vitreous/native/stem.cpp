// The convolutional stem: whitening, stages of a 3x3 convolution each, and the projection to tokens, forward and
// backward. A core works on one image at a time. A convolution is a matrix product that reads the three lines of its
// window directly from a padded copy of the image, so no patches are copied; pooling, norm and GELU follow while the
// result is in the core's cache.
//
// Of a stage: S side of its input, I input channels, W side of its pooling windows, G = S / W side of its output, C
// output channels. Of the stem: B images, N tokens, D channels of a token. Activations are `Act` with the channels
// last, [B, S, S, I]; tokens are float32 [B, N, D].

#include <algorithm>

#include "arguments.h"
#include "norms.h"
#include "parallel.h"
#include "products.h"

namespace {

constexpr int64_t DIRECTIONS = 12;           // of a whitened patch: 2x2 pixels of 3 channels
constexpr int64_t WHITENED = 2 * DIRECTIONS; // channels: each direction and its negative
constexpr int64_t MAX_UNITS = 128;           // depth of the products for weight gradients: both operands fit the cache

struct Stage {
    int64_t S, I, C, W, G;
    bool skip; // whether the stage adds its input to its output
    const float *conv, *weight, *bias;
    float *dconv, *dweight, *dbias;
    // Kept for the backward pass:
    Act *x;            // [B, S, S, I]: the input
    Act *out, *pooled; // [B, G, G, C]: the output, and the maximum of each window
    uint8_t *argmax;   // [B, G, G, C]: position of the maximum in its window, row by row
    Statistics *stats; // [B, G, G]: of the norm
};

// Packs the weight [C, I, 3, 3] of a convolution as the right operand of a product: units [9 taps, unit_count(rows),
// padded columns]. For the forward pass, rows are I and columns are C. For the backward pass, rows are C and columns
// are I, and the taps are reversed.
std::vector<Unit> pack_convolution(const float *w, int64_t C, int64_t I, Direction direction) {
    const bool backward = direction == BACKWARD;
    int64_t rows = backward ? C : I, columns = backward ? I : C, depth = unit_count(rows),
            padded_columns = round_up(columns);
    std::vector<Unit> units(9 * depth * padded_columns);
    parallel_for(9, [&](int64_t tap) {
        std::vector<float> line(padded_columns);
        std::vector<Act> tap_weight(rows * padded_columns);
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = 0; c < columns; c++)
                line[c] = backward ? w[(r * I + c) * 9 + 8 - tap] : w[(c * I + r) * 9 + tap];
            for (int64_t c = 0; c < padded_columns; c += LANES)
                store(&tap_weight[r * padded_columns + c], load(&line[c]));
        }
        pack_rows(tap_weight.data(), rows, padded_columns, &units[tap * depth * padded_columns], padded_columns);
    });
    return units;
}

// out [B, G, G, 24] = GELU of every `step`-th 2x2 patch, in both directions, of images x [B, 3, S, S], along the
// directions `weight` [12, 12] and along their negatives, which cost no exponential since gelu(-x) = gelu(x) - x.
// G = (S - 1) / step, and `stride` has the four strides of x.
void whiten(const float *x, const int64_t *stride, const float *weight, Act *out, int64_t B, int64_t G, int64_t step) {
    float by_patch[DIRECTIONS * MIN_WIDTH] = {}; // the transpose [patch element, direction], with padded rows
    for (int64_t i = 0; i < DIRECTIONS * DIRECTIONS; i++)
        by_patch[i % DIRECTIONS * MIN_WIDTH + i / DIRECTIONS] = weight[i];
#pragma omp parallel for schedule(guided) collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < G; i++)
            for (int64_t j = 0; j < G; j++) {
                const int64_t top = step * i + step - 1, left = step * j + step - 1;
                const float *corner = x + b * stride[0] + top * stride[2] + left * stride[3];
                Act plus[MIN_WIDTH], minus[MIN_WIDTH];
                for (int c = 0; c < MIN_WIDTH; c += LANES) {
                    Vec projected = {};
                    for (int64_t t = 0; t < DIRECTIONS; t++)
                        projected += corner[(t / 4) * stride[1] + (t / 2 % 2) * stride[2] + (t % 2) * stride[3]] *
                                     load(by_patch + t * MIN_WIDTH + c);
                    Vec value = gelu(projected);
                    store(plus + c, value);
                    store(minus + c, value - projected);
                }
                Act *pixel = out + ((b * G + i) * G + j) * WHITENED;
                std::memcpy(pixel, plus, DIRECTIONS * sizeof(Act));
                std::memcpy(pixel + DIRECTIONS, minus, DIRECTIONS * sizeof(Act));
            }
}

// A stage: 3x3 convolution padded by one, maximum of each W x W window, layer norm over the channels, GELU, and with
// `skip` plus x. From stage.x [B, S, S, I] to stage.out [B, G, G, C].
void stage_forward(const Stage &stage, int64_t B, float eps) {
    const int64_t S = stage.S, I = stage.I, C = stage.C, W = stage.W, G = stage.G, P = S + 2;
    const int64_t pixel_units = unit_count(I), padded_C = round_up(C);
    const bool skip = stage.skip;
    const Act *x = stage.x;
    const float *weight = stage.weight, *bias = stage.bias;
    Act *out = stage.out, *pooled = stage.pooled;
    uint8_t *argmax = stage.argmax;
    Statistics *stats = stage.stats;
    const std::vector<Unit> packed = pack_convolution(stage.conv, C, I, FORWARD);
    parallel_chunks(B, 1, [&](auto run) {
        std::vector<Act> padded(P * P * pixel_units * UNIT_SIZE); // the image with a border of zeros
        std::vector<float> lines(W * S * padded_C);
        const Unit *corner = reinterpret_cast<const Unit *>(padded.data());
        run([&](int64_t b, int64_t) {
            // Copies a whole line at a time, or a pixel if pixels do not end with a unit.
            for (int64_t i = 0, pixels = I % UNIT_SIZE ? 1 : S; i < S * S; i += pixels)
                std::memcpy(&padded[((i / S + 1) * P + i % S + 1) * pixel_units * UNIT_SIZE], x + (b * S * S + i) * I,
                            pixels * I * sizeof(Act));
            for (int64_t i = 0; i < G; i++) {
                for (int64_t w = 0; w < W; w++) {
                    LeftOperand window{corner + (i * W + w) * P * pixel_units, pixel_units, 1, 3, P * pixel_units};
                    multiply(G * W, window, packed.data(), padded_C, 3 * pixel_units, &lines[w * S * padded_C]);
                }
                for (int64_t j = 0; j < G; j++) {
                    int64_t at = (b * G + i) * G + j;
                    const float *window = &lines[j * W * padded_C];
                    Act *maxima = pooled + at * C;
                    for_each_vector(C, [&](int64_t c, auto) {
                        Vec v = load(window + c);
                        Int position = {};
                        for (int w = 1; w < W * W; w++) {
                            Vec other = load(window + (w / W * S + w % W) * padded_C + c);
                            position = other > v ? w - Int{} : position;
                            v = maximum(other, v);
                        }
                        store(maxima + c, v);
                        Bytes bytes = __builtin_convertvector(position, Bytes);
                        std::memcpy(argmax + at * C + c, &bytes, sizeof bytes);
                    });
                    Statistics s = stats[at] = statistics(C, eps, [&](int64_t c) { return load(maxima + c); });
                    for_each_vector(C, [&](int64_t c, auto) {
                        Vec v = gelu((load(maxima + c) - s.mean) * s.rstd * load(weight + c) + load(bias + c));
                        store(out + at * C + c, skip ? v + load(x + at * C + c) : v);
                    });
                }
            }
        });
    });
}

// Computes dx [B, S, S, I], unless dx is null, and the gradients of the stage's weights from dout [B, G, G, C].
void stage_backward(const Stage &stage, int64_t B, const Act *dout, Act *dx) {
    const int64_t S = stage.S, I = stage.I, C = stage.C, W = stage.W, G = stage.G, P = S + 2;
    const int64_t pixel_units = unit_count(C), padded_I = round_up(I), padded_C = round_up(C),
                  padded_9I = round_up(9 * I);
    const bool skip = stage.skip;
    const Act *x = stage.x, *pooled = stage.pooled;
    const float *weight = stage.weight, *bias = stage.bias;
    const uint8_t *argmax = stage.argmax;
    const Statistics *stats = stage.stats;
    const std::vector<Unit> packed = dx ? pack_convolution(stage.conv, C, I, BACKWARD) : std::vector<Unit>();
    std::unique_ptr<float[]> conv_sums(new float[C * 9 * I]); // the convolution's gradient, [C, 3, 3, I]
    SumLayout layout;
    const int64_t dweight = layout.add(1, C, stage.dweight), dbias = layout.add(1, C, stage.dbias);
    const int64_t dconv = layout.add(C, 9 * I, conv_sums.get());
    parallel_sum(B, B, layout, [&](auto run) {
        std::vector<float> dnormed_row(C), line(S * padded_I);
        std::vector<Act> dy(P * P * pixel_units * UNIT_SIZE), padded(P * P * I); // dy and x with borders of zeros
        std::vector<Unit> left(MAX_UNITS * padded_C), right(MAX_UNITS * padded_9I);
        float *dnormed = dnormed_row.data();
        // Offset in the padded image of pixel q of those that pooling windows cover. The others have no gradient.
        auto pixel = [&](int64_t q) { return (q / (G * W) + 1) * P + q % (G * W) + 1; };
        run([&](int64_t first, int64_t images, float *sums) {
            int64_t depth = 0;
            auto add_product = [&] {
                multiply<true>(C, {left.data(), 1, padded_C}, right.data(), padded_9I, depth, sums + dconv);
                depth = 0;
            };
            for (int64_t b = first; b < first + images; b++) {
                for (int64_t i = 0; i < G; i++)
                    for (int64_t j = 0; j < G; j++) {
                        int64_t at = (b * G + i) * G + j;
                        Act *corner = &dy[((i * W + 1) * P + j * W + 1) * pixel_units * UNIT_SIZE];
                        const Act *max = pooled + at * C;
                        Statistics s = stats[at];
                        for_each_vector(C, [&](int64_t c, auto) {
                            Vec before = (load(max + c) - s.mean) * s.rstd * load(weight + c) + load(bias + c);
                            store(dnormed + c, load(dout + at * C + c) * gelu_with_slope(before).slope);
                        });
                        norm_backward(
                            C, s.rstd, weight, sums + dweight, sums + dbias,
                            [&](int64_t c) { return (load(max + c) - s.mean) * s.rstd; },
                            [&](int64_t c) { return load(dnormed + c); },
                            [&](int64_t c, auto, Vec d) {
                                Bytes bytes;
                                std::memcpy(&bytes, argmax + at * C + c, sizeof bytes);
                                Int position = __builtin_convertvector(bytes, Int);
                                for (int w = 0; w < W * W; w++)
                                    store(corner + (w / W * P + w % W) * pixel_units * UNIT_SIZE + c,
                                          (Vec)((Int)d & (position == w)));
                            });
                    }
                const Unit *lines = reinterpret_cast<const Unit *>(dy.data());
                if (dx)
                    for (int64_t i = 0; i < S; i++) {
                        LeftOperand window{lines + i * P * pixel_units, pixel_units, 1, 3, P * pixel_units};
                        multiply(S, window, packed.data(), padded_I, 3 * pixel_units, line.data());
                        for (int64_t j = 0; j < S; j++) {
                            int64_t at = ((b * S + i) * S + j) * I;
                            for_each_vector(I, [&](int64_t c, auto) {
                                Vec v = load(&line[j * padded_I + c]);
                                store(dx + at + c, skip ? v + load(dout + at + c) : v);
                            });
                        }
                    }
                for (int64_t i = 0; i < S; i++)
                    std::memcpy(&padded[((i + 1) * P + 1) * I], x + (b * S + i) * S * I, S * I * sizeof(Act));
                for (int64_t q = 0; q < G * W * G * W; q += UNIT_SIZE) {
                    int64_t center = pixel(q),
                            next_center = q + 1 < G * W * G * W ? pixel(q + 1) : 0; // pixel 0 is border: zeros
                    pack_row_pair(&dy[center * pixel_units * UNIT_SIZE], &dy[next_center * pixel_units * UNIT_SIZE], C,
                                  &left[depth * padded_C]);
                    for (int64_t line = 0; line < 3; line++) { // three neighbours are adjacent in memory
                        int64_t offset = (line - 1) * P - 1;
                        pack_row_pair(&padded[(center + offset) * I],
                                      next_center ? &padded[(next_center + offset) * I] : nullptr, 3 * I,
                                      &right[depth * padded_9I + line * 3 * I]);
                    }
                    if (++depth == MAX_UNITS) add_product();
                }
            }
            add_product();
        });
    });
    float *dconv_out = stage.dconv;
#pragma omp parallel for
    for (int64_t c = 0; c < C; c++)
        for (int64_t tap = 0; tap < 9; tap++)
            for (int64_t i = 0; i < I; i++) dconv_out[(c * I + i) * 9 + tap] = conv_sums[(c * 9 + tap) * I + i];
}

// y [R, D] = x [R, I] weight^T + bias, plus the `position` [N, D] of each image's tokens unless it is null. R = B * N.
void project(const Act *x, float *y, const float *weight, const float *bias, const float *position, int64_t R,
             int64_t N, int64_t I, int64_t D) {
    const PackedWeight w(weight, D, I, FORWARD);
    parallel_chunks(R, CHUNK_ROWS, [&](auto run) {
        std::vector<Act> padded(CHUNK_ROWS * round_up(I));
        std::vector<float> sums(CHUNK_ROWS * w.width);
        run([&](int64_t first, int64_t rows) {
            for (int64_t r = 0; r < rows; r++)
                std::memcpy(&padded[r * round_up(I)], x + (first + r) * I, I * sizeof(Act));
            multiply(rows, padded.data(), round_up(I), w, sums.data());
            for (int64_t r = 0; r < rows; r++) {
                const float *token_position = position ? position + (first + r) % N * D : nullptr;
                for_each_vector(D, [&](int64_t d, auto) {
                    Vec v = load(&sums[r * w.width + d]) + load(bias + d);
                    store(y + (first + r) * D + d, token_position ? v + load(token_position + d) : v);
                });
            }
        });
    });
}

// Computes dx [R, I] and the gradients of weight, bias and, unless it is null, position from dy [R, D].
void project_backward(const float *dy, const Act *x, Act *dx, const float *weight, float *dweight, float *dbias,
                      float *dposition, int64_t R, int64_t N, int64_t I, int64_t D) {
    int64_t padded_I = round_up(I), padded_D = round_up(D);
    const PackedWeight w(weight, D, I, BACKWARD);
    SumLayout layout;
    const int64_t weight_sums = layout.add(D, I, dweight), bias_sums = layout.add(1, D, dbias);
    const int64_t position_sums = layout.add(dposition ? N : 0, D, dposition);
    parallel_sum(R, CHUNK_ROWS, layout, [&](auto run) {
        std::vector<Act> dy_rows(CHUNK_ROWS * padded_D), padded(CHUNK_ROWS * padded_I);
        std::vector<Unit> scratch(unit_count(CHUNK_ROWS) * (padded_D + padded_I));
        std::vector<float> y(CHUNK_ROWS * padded_I);
        run([&](int64_t first, int64_t rows, float *sums) {
            for (int64_t r = 0; r < rows; r++) {
                const float *dy_row = dy + (first + r) * D;
                for_each_vector(D, [&](int64_t d, auto) { store(&dy_rows[r * padded_D + d], load(dy_row + d)); });
                if (dposition) {
                    float *position_sum = sums + position_sums + (first + r) % N * padded_D;
                    for_each_vector(D, [&](int64_t d, auto done) {
                        store_new_lanes(position_sum + d, load(position_sum + d) + load(dy_row + d), done);
                    });
                }
                std::memcpy(&padded[r * padded_I], x + (first + r) * I, I * sizeof(Act));
            }
            add_weight_gradient(rows, dy_rows.data(), D, padded_D, padded.data(), padded_I, scratch.data(),
                                sums + weight_sums, sums + bias_sums);
            multiply(rows, dy_rows.data(), padded_D, w, y.data());
            for (int64_t r = 0; r < rows; r++)
                for_each_vector(I,
                                [&](int64_t i, auto) { store(dx + (first + r) * I + i, load(&y[r * padded_I + i])); });
        });
    });
}

// The arguments that both passes share: sizes [B, S, the whitening's stride, D, stages, then each stage's channels].
// Every stage pools by 2, except the last, which does not pool, keeps the number of channels and adds its input to its
// output.
struct StemSizes {
    int64_t B, S, step, whitened, D, N; // `whitened` is the side after the whitening
    std::vector<Stage> stages;
    explicit StemSizes(Arguments &arguments)
        : B(arguments.size(1)), S(arguments.size(2, 1 << 20)), step(arguments.size(1, 1 << 10)),
          whitened((S - 1) / step), D(arguments.size(MIN_WIDTH)), stages(arguments.size(1, 1 << 10)) {
        int64_t side = whitened, channels = WHITENED;
        for (Stage &stage : stages) {
            stage.skip = &stage == &stages.back();
            stage.S = side, stage.I = channels, stage.W = stage.skip ? 1 : 2, stage.G = side / stage.W;
            stage.C = arguments.size(MIN_WIDTH, 1 << 20);
            if (stage.G < 1 || (stage.skip && stage.C != stage.I)) throw Refusal(BAD_SIZE);
            side = stage.G, channels = stage.C;
        }
        N = side * side;
    }
    int64_t last_channels() const { return stages.back().C; }
    int64_t rows() const { return checked_product(B, N); }

    // Cuts the memory of everything that is kept, and returns the last stage's output. `stem_kept_bytes` in ops.py
    // computes the same number of bytes.
    Act *cut(Cutter &cutter) {
        Act *input;
        cutter.cut(input, checked_product(B, whitened, whitened, WHITENED));
        for (Stage &stage : stages) {
            int64_t pixels = checked_product(B, stage.G, stage.G), elements = checked_product(pixels, stage.C);
            stage.x = input;
            cutter.cut(stage.out, elements);
            cutter.cut(stage.pooled, elements);
            cutter.cut(stage.argmax, elements);
            cutter.cut(stage.stats, pixels);
            input = stage.out;
        }
        return input;
    }
    Act *read_kept(Arguments &arguments, bool forward) {
        Cutter count(nullptr);
        cut(count);
        Cutter cutter(arguments.tensor<uint8_t>(count.bytes), forward);
        return cut(cutter);
    }
    void read_weights(Arguments &arguments) {
        for (Stage &stage : stages) {
            stage.conv = arguments.tensor<float>(checked_product(stage.C, stage.I, 9));
            stage.weight = arguments.tensor<float>(stage.C);
            stage.bias = arguments.tensor<float>(stage.C);
        }
    }
};

} // namespace

// From images x [B, 3, S, S] to tokens out [B, N, D], plus `position` [N, D] if there is one. The shared sizes are
// followed by the four strides of x, in elements. Tensors: x, out, kept, position (optional), the whitening
// [24, 3, 2, 2], the projection [D, C] and its bias, then for each stage the convolution [C, I, 3, 3] and the norm's
// weight and bias. Numbers: eps.
KERNEL(stem) {
    StemSizes s(arguments);
    int64_t stride[4], last = 0;
    const int64_t shape[4] = {s.B, 3, s.S, s.S};
    for (int i = 0; i < 4; i++) {
        stride[i] = arguments.size(0, INT64_MAX);
        last = checked_sum(last, checked_product(shape[i] - 1, stride[i]));
    }
    const float *x = arguments.tensor<float>(checked_product(s.B, 3, s.S, s.S));
    if (last >= checked_product(s.B, 3, s.S, s.S)) throw Refusal(BAD_SIZE);
    float *out = arguments.tensor<float>(checked_product(s.rows(), s.D));
    Act *last_out = s.read_kept(arguments, true);
    const float *position = arguments.optional<float>(checked_product(s.N, s.D));
    const float *whitening = arguments.tensor<float>(WHITENED * DIRECTIONS);
    const float *proj = arguments.tensor<float>(checked_product(s.D, s.last_channels()));
    const float *proj_bias = arguments.tensor<float>(s.D);
    s.read_weights(arguments);
    const float eps = arguments.number();
    arguments.end();
    for (int64_t i = 0; i < DIRECTIONS * DIRECTIONS; i++) // below, only the first half is read
        if (whitening[i] != -whitening[DIRECTIONS * DIRECTIONS + i]) throw Refusal(BAD_VALUES, 5);

    whiten(x, stride, whitening, s.stages[0].x, s.B, s.whitened, s.step);
    for (const Stage &stage : s.stages) stage_forward(stage, s.B, eps);
    project(last_out, out, proj, proj_bias, position, s.rows(), s.N, s.last_channels(), s.D);
}

// From dout [B, N, D] to the gradients of all weights but the whitening, flat, in their order, and of the position if
// there is one. Tensors: dout, kept, the projection, the stages' weights, gradients, dposition (optional).
KERNEL(stem_backward) {
    StemSizes s(arguments);
    const int64_t C = s.last_channels();
    const float *dout = arguments.tensor<float>(checked_product(s.rows(), s.D));
    const Act *last_out = s.read_kept(arguments, false);
    const float *proj = arguments.tensor<float>(checked_product(s.D, C));
    s.read_weights(arguments);
    int64_t total = checked_sum(s.D * C, s.D);
    for (const Stage &stage : s.stages) total += stage.C * stage.I * 9 + 2 * stage.C;
    float *gradients = arguments.tensor<float>(total);
    float *dposition = arguments.optional<float>(checked_product(s.N, s.D));
    arguments.end();

    float *dproj = gradients, *dproj_bias = dproj + s.D * C, *next = dproj_bias + s.D;
    int64_t largest = 0;
    for (Stage &stage : s.stages) {
        stage.dconv = next, stage.dweight = next + stage.C * stage.I * 9, stage.dbias = stage.dweight + stage.C;
        next = stage.dbias + stage.C;
        largest = std::max(largest, s.B * stage.G * stage.G * stage.C);
    }
    std::unique_ptr<Act[]> dy(new Act[largest]), dx(new Act[largest]);
    project_backward(dout, last_out, dy.get(), proj, dproj, dproj_bias, dposition, s.rows(), s.N, C, s.D);
    for (int64_t i = int64_t(s.stages.size()) - 1; i >= 0; i--) {
        stage_backward(s.stages[i], s.B, dy.get(), i ? dx.get() : nullptr); // the whitening is frozen
        std::swap(dy, dx);
    }
}
