// The convolutional stem: whitening, stages of a 3x3 convolution each, and the projection to tokens.
//
// B pictures, S side of a stage's input and I its channels, W side of its pooling windows, G = S / W side of its output
// and C its channels; N tokens, D their width.

#include <algorithm>

#include "arguments.h"
#include "norms.h"
#include "parallel.h"
#include "products.h"

namespace {

constexpr int64_t DIRECTIONS = 12;           // of a whitened patch: 2x2 pixels of 3 channels
constexpr int64_t WHITENED = 2 * DIRECTIONS; // channels: each direction and its negative
constexpr int64_t MAX_UNITS = 128;           // summed over at a time, so that they stay in the cache

struct Stage {
    int64_t S, I, C, W, G;
    bool skip; // adds its input to its output
    const float *conv, *weight, *bias;
    float *dconv, *dweight, *dbias;
    // Kept for the backward pass:
    Act *x;            // [B, S, S, I]
    Act *out, *pooled; // [B, G, G, C]: the output; the largest of each window
    uint8_t *which;    // [B, G, G, C]: where in its window that was
    Statistics *stats; // [B, G, G], of the norm
};

// The weight [C, I, 3, 3] of a convolution as units, for each tap [unit_count(rows), padded columns]: rows are I and
// columns C for the forward pass; rows are C, columns I and taps reversed for the backward pass.
std::vector<Unit> pack_convolution(const float *w, int64_t C, int64_t I, Direction direction) {
    const bool backward = direction == BACKWARD;
    int64_t rows = backward ? C : I, columns = backward ? I : C, depth = unit_count(rows), across = round_up(columns);
    std::vector<Unit> units(9 * depth * across);
    parallel_for(9, [&](int64_t tap) {
        std::vector<float> line(across);
        std::vector<Act> half(rows * across);
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = 0; c < columns; c++)
                line[c] = backward ? w[(r * I + c) * 9 + 8 - tap] : w[(c * I + r) * 9 + tap];
            for (int64_t c = 0; c < across; c += LANES) store(&half[r * across + c], load(&line[c]));
        }
        pack_rows(half.data(), rows, across, &units[tap * depth * across], across);
    });
    return units;
}

// Pictures, by their strides, to out [B, S - 1, S - 1, 24]: GELU of 2x2 patches along the directions `weight` [12, 12]
// and along their negatives, for which gelu(-x) = gelu(x) - x.
void whiten(const float *x, const int64_t *stride, const float *weight, Act *out, int64_t B, int64_t S) {
    float along_lanes[DIRECTIONS * MIN_WIDTH] = {}; // [patch, direction], the last lanes empty
    for (int64_t i = 0; i < DIRECTIONS * DIRECTIONS; i++)
        along_lanes[i % DIRECTIONS * MIN_WIDTH + i / DIRECTIONS] = weight[i];
#pragma omp parallel for schedule(guided) collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < S - 1; i++)
            for (int64_t j = 0; j < S - 1; j++) {
                const float *corner = x + b * stride[0] + i * stride[2] + j * stride[3];
                Act plus[MIN_WIDTH], minus[MIN_WIDTH];
                for (int c = 0; c < MIN_WIDTH; c += LANES) {
                    Vec along = {};
                    for (int64_t t = 0; t < DIRECTIONS; t++)
                        along += corner[(t / 4) * stride[1] + (t / 2 % 2) * stride[2] + (t % 2) * stride[3]] *
                                 load(along_lanes + t * MIN_WIDTH + c);
                    Vec value = gelu(along);
                    store(plus + c, value);
                    store(minus + c, value - along);
                }
                Act *pixel = out + ((b * (S - 1) + i) * (S - 1) + j) * WHITENED;
                std::memcpy(pixel, plus, DIRECTIONS * sizeof(Act));
                std::memcpy(pixel + DIRECTIONS, minus, DIRECTIONS * sizeof(Act));
            }
}

// A convolution of 3x3, padded by one; the largest of each W x W window; layer norm over the channels; GELU; plus x
// with `skip`.
void stage_forward(const Stage &stage, int64_t B, float eps) {
    const int64_t S = stage.S, I = stage.I, C = stage.C, W = stage.W, G = stage.G, P = S + 2;
    const int64_t paired = unit_count(I), across = round_up(C);
    const bool skip = stage.skip;
    const Act *x = stage.x;
    const float *weight = stage.weight, *bias = stage.bias;
    Act *out = stage.out, *pooled = stage.pooled;
    uint8_t *which = stage.which;
    Statistics *stats = stage.stats;
    const std::vector<Unit> packed = pack_convolution(stage.conv, C, I, FORWARD);
    parallel_chunks(B, 1, [&](auto run) {
        std::vector<Act> padded(P * P * paired * UNIT_SIZE); // with a border of zeros
        std::vector<float> lines(W * S * across);
        const Unit *corner = reinterpret_cast<const Unit *>(padded.data());
        run([&](int64_t b, int64_t) {
            // A line at a time if pixels are whole units.
            for (int64_t i = 0, some = I % UNIT_SIZE ? 1 : S; i < S * S; i += some)
                std::memcpy(&padded[((i / S + 1) * P + i % S + 1) * paired * UNIT_SIZE], x + (b * S * S + i) * I,
                            some * I * sizeof(Act));
            for (int64_t i = 0; i < G; i++) {
                for (int64_t w = 0; w < W; w++) {
                    LeftOperand window{corner + (i * W + w) * P * paired, paired, 1, 3, P * paired};
                    multiply(G * W, window, packed.data(), across, 3 * paired, &lines[w * S * across]);
                }
                for (int64_t j = 0; j < G; j++) {
                    int64_t at = (b * G + i) * G + j;
                    const float *window = &lines[j * W * across];
                    Act *largest = pooled + at * C;
                    for_each_vector(C, [&](int64_t c, auto) {
                        Vec v = load(window + c);
                        Int place = {};
                        for (int w = 1; w < W * W; w++) {
                            Vec other = load(window + (w / W * S + w % W) * across + c);
                            place = other > v ? w - Int{} : place;
                            v = maximum(other, v);
                        }
                        store(largest + c, v);
                        Bytes bytes = __builtin_convertvector(place, Bytes);
                        std::memcpy(which + at * C + c, &bytes, sizeof bytes);
                    });
                    Statistics s = stats[at] = statistics(C, eps, [&](int64_t c) { return load(largest + c); });
                    for_each_vector(C, [&](int64_t c, auto) {
                        Vec v = gelu((load(largest + c) - s.mean) * s.rstd * load(weight + c) + load(bias + c));
                        store(out + at * C + c, skip ? v + load(x + at * C + c) : v);
                    });
                }
            }
        });
    });
}

// From dout [B, G, G, C] to dx [B, S, S, I], unless that is null, and the stage's gradients. With `skip`, dout is added
// to dx.
void stage_backward(const Stage &stage, int64_t B, const Act *dout, Act *dx) {
    const int64_t S = stage.S, I = stage.I, C = stage.C, W = stage.W, G = stage.G, P = S + 2;
    const int64_t paired = unit_count(C), across = round_up(I), rows = round_up(C), columns = round_up(9 * I);
    const bool skip = stage.skip;
    const Act *x = stage.x, *pooled = stage.pooled;
    const float *weight = stage.weight, *bias = stage.bias;
    const uint8_t *which = stage.which;
    const Statistics *stats = stage.stats;
    const std::vector<Unit> packed = dx ? pack_convolution(stage.conv, C, I, BACKWARD) : std::vector<Unit>();
    std::unique_ptr<float[]> conv(new float[C * 9 * I]); // the convolution's gradient as [C, 3, 3, I]
    SumLayout layout;
    const int64_t dweight = layout.add(1, C, stage.dweight), dbias = layout.add(1, C, stage.dbias);
    const int64_t dconv = layout.add(C, 9 * I, conv.get());
    parallel_sum(B, B, layout, [&](auto run) {
        std::vector<float> room(C), line(S * across);
        std::vector<Act> dy(P * P * paired * UNIT_SIZE), padded(P * P * I); // with borders of zeros
        std::vector<Unit> left(MAX_UNITS * rows), right(MAX_UNITS * columns);
        float *before_gelu = room.data();
        // The q-th pixel that a window covers, in the padded picture. Others have no gradient.
        auto pixel = [&](int64_t q) { return (q / (G * W) + 1) * P + q % (G * W) + 1; };
        run([&](int64_t first, int64_t pictures, float *sums) {
            int64_t depth = 0;
            auto add_up = [&] {
                multiply<true>(C, {left.data(), 1, rows}, right.data(), columns, depth, sums + dconv);
                depth = 0;
            };
            for (int64_t b = first; b < first + pictures; b++) {
                for (int64_t i = 0; i < G; i++)
                    for (int64_t j = 0; j < G; j++) {
                        int64_t at = (b * G + i) * G + j;
                        Act *corner = &dy[((i * W + 1) * P + j * W + 1) * paired * UNIT_SIZE];
                        const Act *max = pooled + at * C;
                        Statistics s = stats[at];
                        for_each_vector(C, [&](int64_t c, auto) {
                            Vec before = (load(max + c) - s.mean) * s.rstd * load(weight + c) + load(bias + c);
                            store(before_gelu + c, load(dout + at * C + c) * gelu_with_slope(before).slope);
                        });
                        norm_backward(
                            C, s.rstd, weight, sums + dweight, sums + dbias,
                            [&](int64_t c) { return (load(max + c) - s.mean) * s.rstd; },
                            [&](int64_t c) { return load(before_gelu + c); },
                            [&](int64_t c, auto, Vec d) {
                                Bytes bytes;
                                std::memcpy(&bytes, which + at * C + c, sizeof bytes);
                                Int place = __builtin_convertvector(bytes, Int);
                                for (int w = 0; w < W * W; w++)
                                    store(corner + (w / W * P + w % W) * paired * UNIT_SIZE + c,
                                          (Vec)((Int)d & (place == w)));
                            });
                    }
                const Unit *lines = reinterpret_cast<const Unit *>(dy.data());
                if (dx)
                    for (int64_t i = 0; i < S; i++) {
                        LeftOperand window{lines + i * P * paired, paired, 1, 3, P * paired};
                        multiply(S, window, packed.data(), across, 3 * paired, line.data());
                        for (int64_t j = 0; j < S; j++) {
                            int64_t at = ((b * S + i) * S + j) * I;
                            for_each_vector(I, [&](int64_t c, auto) {
                                Vec v = load(&line[j * across + c]);
                                store(dx + at + c, skip ? v + load(dout + at + c) : v);
                            });
                        }
                    }
                for (int64_t i = 0; i < S; i++)
                    std::memcpy(&padded[((i + 1) * P + 1) * I], x + (b * S + i) * S * I, S * I * sizeof(Act));
                for (int64_t q = 0; q < G * W * G * W; q += UNIT_SIZE) {
                    int64_t here = pixel(q), next = q + 1 < G * W * G * W ? pixel(q + 1) : 0; // pixel 0 is border
                    pack_row_pair(&dy[here * paired * UNIT_SIZE], &dy[next * paired * UNIT_SIZE], C,
                                  &left[depth * rows]);
                    for (int64_t line = 0; line < 3; line++) { // three neighbours are one row of memory
                        int64_t offset = (line - 1) * P - 1;
                        pack_row_pair(&padded[(here + offset) * I], next ? &padded[(next + offset) * I] : nullptr,
                                      3 * I, &right[depth * columns + line * 3 * I]);
                    }
                    if (++depth == MAX_UNITS) add_up();
                }
            }
            add_up();
        });
    });
    float *grads = stage.dconv;
#pragma omp parallel for
    for (int64_t c = 0; c < C; c++)
        for (int64_t tap = 0; tap < 9; tap++)
            for (int64_t i = 0; i < I; i++) grads[(c * I + i) * 9 + tap] = conv[(c * 9 + tap) * I + i];
}

// y [R, D] = x [R, I] through a linear layer, plus `position` [N, D] of each picture's tokens, unless that is null.
void project(const Act *x, float *y, const float *weight, const float *bias, const float *position, int64_t R,
             int64_t N, int64_t I, int64_t D) {
    const PackedWeight w(weight, D, I, FORWARD);
    parallel_chunks(R, CHUNK_ROWS, [&](auto run) {
        std::vector<Act> padded(CHUNK_ROWS * round_up(I));
        std::vector<float> sums(CHUNK_ROWS * w.width);
        run([&](int64_t from, int64_t rows) {
            for (int64_t r = 0; r < rows; r++)
                std::memcpy(&padded[r * round_up(I)], x + (from + r) * I, I * sizeof(Act));
            multiply(rows, padded.data(), round_up(I), w, sums.data());
            for (int64_t r = 0; r < rows; r++) {
                const float *place = position ? position + (from + r) % N * D : nullptr;
                for_each_vector(D, [&](int64_t d, auto) {
                    Vec v = load(&sums[r * w.width + d]) + load(bias + d);
                    store(y + (from + r) * D + d, place ? v + load(place + d) : v);
                });
            }
        });
    });
}

// From dy [R, D] to dx [R, I] and the gradients of weight, bias and, unless that is null, position.
void project_backward(const float *dy, const Act *x, Act *dx, const float *weight, float *dweight, float *dbias,
                      float *dposition, int64_t R, int64_t N, int64_t I, int64_t D) {
    int64_t across = round_up(I), wide = round_up(D);
    const PackedWeight w(weight, D, I, BACKWARD);
    SumLayout layout;
    const int64_t weight_sums = layout.add(D, I, dweight), bias_sums = layout.add(1, D, dbias);
    const int64_t position_sums = layout.add(dposition ? N : 0, D, dposition);
    parallel_sum(R, CHUNK_ROWS, layout, [&](auto run) {
        std::vector<Act> half(CHUNK_ROWS * wide), padded(CHUNK_ROWS * across);
        std::vector<Unit> scratch(unit_count(CHUNK_ROWS) * (wide + across));
        std::vector<float> y(CHUNK_ROWS * across);
        run([&](int64_t from, int64_t rows, float *sums) {
            for (int64_t r = 0; r < rows; r++) {
                const float *given = dy + (from + r) * D;
                for_each_vector(D, [&](int64_t d, auto) { store(&half[r * wide + d], load(given + d)); });
                if (dposition) {
                    float *own = sums + position_sums + (from + r) % N * wide;
                    for_each_vector(D, [&](int64_t d, auto done) {
                        store_new_lanes(own + d, load(own + d) + load(given + d), done);
                    });
                }
                std::memcpy(&padded[r * across], x + (from + r) * I, I * sizeof(Act));
            }
            add_weight_gradient(rows, half.data(), D, wide, padded.data(), across, scratch.data(), sums + weight_sums,
                                sums + bias_sums);
            multiply(rows, half.data(), wide, w, y.data());
            for (int64_t r = 0; r < rows; r++)
                for_each_vector(I, [&](int64_t i, auto) { store(dx + (from + r) * I + i, load(&y[r * across + i])); });
        });
    });
}

// What both passes are given: sizes [B, S, D, stages, then each stage's channels]. All stages pool by 2 but the last,
// which has as many channels as the one before and adds its input.
struct StemSizes {
    int64_t B, S, D, N;
    std::vector<Stage> stages;
    explicit StemSizes(Arguments &arguments)
        : B(arguments.size(1)), S(arguments.size(2, 1 << 20)), D(arguments.size(MIN_WIDTH)),
          stages(arguments.size(1, 1 << 10)) {
        int64_t side = S - 1, channels = WHITENED;
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

    // Cuts what is kept; returns the last stage's output. Python computes the same number of bytes in
    // `stem_kept_bytes`.
    Act *cut(Cutter &cutter) {
        Act *input;
        cutter.cut(input, checked_product(B, S - 1, S - 1, WHITENED));
        for (Stage &stage : stages) {
            int64_t pixels = checked_product(B, stage.G, stage.G), elements = checked_product(pixels, stage.C);
            stage.x = input;
            cutter.cut(stage.out, elements);
            cutter.cut(stage.pooled, elements);
            cutter.cut(stage.which, elements);
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

// From pictures x [B, 3, S, S] to tokens out [B, N, D], plus `position` [N, D] if it is there. After the other sizes
// come the four strides of x, in elements. Tensors: x, out, kept, position, the whitening [24, 3, 2, 2], the projection
// [D, C] and its bias, then each stage's convolution, norm's weight and bias. Numbers: eps.
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
    for (int64_t i = 0; i < DIRECTIONS * DIRECTIONS; i++) // the second half is not read
        if (whitening[i] != -whitening[DIRECTIONS * DIRECTIONS + i]) throw Refusal(BAD_VALUES, 5);

    whiten(x, stride, whitening, s.stages[0].x, s.B, s.S);
    for (const Stage &stage : s.stages) stage_forward(stage, s.B, eps);
    project(last_out, out, proj, proj_bias, position, s.rows(), s.N, s.last_channels(), s.D);
}

// From dout [B, N, D] to the gradients of the weights but the whitening, one after another in their order, and of the
// position, if there is one. Tensors: dout, kept, the projection, the stages' weights, gradients, dposition.
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

    float *dproj = gradients, *dproj_bias = dproj + s.D * C, *at = dproj_bias + s.D;
    int64_t largest = 0;
    for (Stage &stage : s.stages) {
        stage.dconv = at, stage.dweight = at + stage.C * stage.I * 9, stage.dbias = stage.dweight + stage.C;
        at = stage.dbias + stage.C;
        largest = std::max(largest, s.B * stage.G * stage.G * stage.C);
    }
    std::unique_ptr<Act[]> dy(new Act[largest]), dx(new Act[largest]);
    project_backward(dout, last_out, dy.get(), proj, dproj, dproj_bias, dposition, s.rows(), s.N, C, s.D);
    for (int64_t i = int64_t(s.stages.size()) - 1; i >= 0; i--) {
        stage_backward(s.stages[i], s.B, dy.get(), i ? dx.get() : nullptr); // the whitening is frozen
        std::swap(dy, dx);
    }
}
