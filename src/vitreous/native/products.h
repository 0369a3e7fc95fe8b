// Matrix products small enough for a core's own cache, and the packing of their operands.
//
// A product works on 32-bit units: one float, or two bfloat16 that are neighbours along the dimension summed over, as
// the instruction for bfloat16 takes them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace {

// Rows worked on at a time: enough for fast products, few enough for the cache.
constexpr int64_t CHUNK_ROWS = 160;

typedef int32_t Unit;
#ifdef BFLOAT16
constexpr int UNIT_SIZE = 2; // activations in a unit
#else
constexpr int UNIT_SIZE = 1;
#endif
inline int64_t unit_count(int64_t count) { return (count + UNIT_SIZE - 1) / UNIT_SIZE; }

// A tile of the result is held in that many registers, and is at most so many vectors wide.
#ifdef __AVX512F__
constexpr int ACCUMULATORS = 24, MAX_TILE_WIDTH = 4;
#else
constexpr int ACCUMULATORS = 12, MAX_TILE_WIDTH = 2;
#endif
constexpr int MAX_TILE_HEIGHT = 12;

inline Vec multiply_add(Vec sum, Unit a, Int b) {
    Int left = a - Int{};
#if defined(BFLOAT16) && defined(__AVX512BF16__)
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)b);
#elif defined(BFLOAT16)
    constexpr int HIGH = -65536;
    return sum + (Vec)(left << 16) * (Vec)(b << 16) + (Vec)(left & HIGH) * (Vec)(b & HIGH);
#else
    return sum + (Vec)left * (Vec)b;
#endif
}

// The left operand [rows, depth] by strides, in units. The depth may consist of several lines, `line_stride` apart:
// that is how a convolution reads the three lines of its window.
struct LeftOperand {
    const Unit *at;
    int64_t row_stride, depth_stride, lines = 1, line_stride = 0;
};
inline LeftOperand row_major(const Act *rows, int64_t width) {
    return {reinterpret_cast<const Unit *>(rows), width / UNIT_SIZE, 1};
}

// c [HEIGHT, WIDTH * LANES] = a [HEIGHT, depth] b [depth, WIDTH * LANES], or, with ADD, that added to c. Rows of b and
// c are `b_stride` and `c_stride` apart.
template <bool ADD, int WIDTH, int HEIGHT>
void multiply_tile(LeftOperand a, const Unit *b, int64_t b_stride, int64_t depth, float *c, int64_t c_stride) {
    Vec sums[HEIGHT][WIDTH] = {};
    for (int64_t line = 0; line < a.lines; line++, a.at += a.line_stride)
        for (int64_t i = 0; i < depth; i++, b += b_stride) {
            Int right[WIDTH];
#pragma GCC unroll 4
            for (int w = 0; w < WIDTH; w++) std::memcpy(&right[w], b + w * LANES, sizeof right[w]);
#pragma GCC unroll 24
            for (int m = 0; m < HEIGHT; m++)
#pragma GCC unroll 4
                for (int w = 0; w < WIDTH; w++)
                    sums[m][w] = multiply_add(sums[m][w], a.at[m * a.row_stride + i * a.depth_stride], right[w]);
        }
#pragma GCC unroll 24
    for (int m = 0; m < HEIGHT; m++)
#pragma GCC unroll 4
        for (int w = 0; w < WIDTH; w++) {
            float *at = c + m * c_stride + w * LANES;
            store(at, ADD ? load(at) + sums[m][w] : sums[m][w]);
        }
}

// The same for any number of rows, `height` <= HEIGHT at a time. HEIGHT is a template parameter so that the sums stay
// in registers; the recursion finds the right one.
template <bool ADD, int WIDTH, int HEIGHT>
void multiply_column(int64_t rows, int64_t height, LeftOperand a, const Unit *b, int64_t b_stride, int64_t depth,
                     float *c, int64_t c_stride) {
    if constexpr (HEIGHT > 1)
        if (height < HEIGHT)
            return multiply_column<ADD, WIDTH, HEIGHT - 1>(rows, height, a, b, b_stride, depth, c, c_stride);
    for (; rows >= HEIGHT; rows -= HEIGHT, a.at += HEIGHT * a.row_stride, c += HEIGHT * c_stride)
        multiply_tile<ADD, WIDTH, HEIGHT>(a, b, b_stride, depth, c, c_stride);
    if constexpr (HEIGHT > 1)
        if (rows) multiply_column<ADD, WIDTH, HEIGHT - 1>(rows, rows, a, b, b_stride, depth, c, c_stride);
}

// c [rows, width] = a [rows, depth] b [depth, width], or, with ADD, that added to c. LANES divides `width`; `depth` is
// that of one line.
template <bool ADD = false>
void multiply(int64_t rows, LeftOperand a, const Unit *b, int64_t width, int64_t depth, float *c) {
    for (int64_t left = width / LANES; left > 0;) { // columns of tiles and rows of a tile, as equal as possible
        int64_t columns = (left + MAX_TILE_WIDTH - 1) / MAX_TILE_WIDTH, vectors = (left + columns - 1) / columns;
        int64_t most = std::min<int64_t>(ACCUMULATORS / vectors, MAX_TILE_HEIGHT), times = (rows + most - 1) / most;
        int64_t height = (rows + times - 1) / times, at = width - left * LANES;
        auto run = [&](auto column) { column(rows, height, a, b + at, width, depth, c + at, width); };
        if (vectors == 1)
            run(multiply_column<ADD, 1, MAX_TILE_HEIGHT>);
        else if (vectors == 2)
            run(multiply_column<ADD, 2, ACCUMULATORS / 2>);
        else if constexpr (MAX_TILE_WIDTH > 2)
            run(vectors == 3 ? multiply_column<ADD, 3, ACCUMULATORS / 3> : multiply_column<ADD, 4, ACCUMULATORS / 4>);
        left -= vectors;
    }
}

#ifdef BFLOAT16
// Unit i is element i of `low` and element i of `high`.
inline Bits interleave(Half low, Half high) {
#ifdef __AVX512BF16__
    constexpr Bits ORDER = ((Bits)LANE + 32u) << 16 | (Bits)LANE;
    return (Bits)_mm512_permutex2var_epi16(_mm512_castsi256_si512((__m256i)low), (__m512i)ORDER,
                                           _mm512_castsi256_si512((__m256i)high));
#else
    return __builtin_convertvector(low, Bits) | __builtin_convertvector(high, Bits) << 16;
#endif
}
#endif

// Interleaves two rows into units. The second row may be null, which stands for zeros; float units hold the first only.
inline void pack_row_pair(const Act *first, [[maybe_unused]] const Act *second, int64_t width, Unit *to) {
    for_each_vector(width, [&](int64_t c, auto) {
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

// Packs rows [count, width] for a product that sums over rows: units [unit_count(count), stride].
inline void pack_rows(const Act *from, int64_t count, int64_t width, Unit *to, int64_t stride) {
    for (int64_t n = 0; n < count; n += UNIT_SIZE)
        pack_row_pair(from + n * width, n + 1 < count ? from + (n + 1) * width : nullptr, width,
                      to + n / UNIT_SIZE * stride);
}

// Packs rows [count, width] for a product that sums over columns: the transpose of their first `depth` units,
// [depth, stride].
inline void transpose(const Act *from, int64_t count, int64_t width, int64_t depth, Unit *to, int64_t stride) {
    const Unit *units = reinterpret_cast<const Unit *>(from);
    for (int64_t n = 0; n < count; n++)
        for (int64_t i = 0; i < depth; i++) to[i * stride + n] = units[n * (width / UNIT_SIZE) + i];
}

// The weight [out, in] of a linear layer as the right operand of a product: of x [rows, in] for the forward pass
// (FORWARD), or of dy [rows, out] for the backward pass. `width` is that of the result, padded.
enum Direction { FORWARD, BACKWARD };
struct PackedWeight {
    int64_t depth, width;
    std::vector<Unit> units;
    PackedWeight(const float *weight, int64_t out, int64_t in, Direction direction) {
        bool forward = direction == FORWARD;
        int64_t padded = round_up(in);
        std::vector<Act> rows(out * padded);
        for (int64_t o = 0; o < out; o++)
            for_each_vector(in, [&](int64_t i, auto) { store(&rows[o * padded + i], load(weight + o * in + i)); });
        depth = unit_count(forward ? in : out);
        width = forward ? round_up(out) : padded;
        units.resize(depth * width);
        if (forward)
            transpose(rows.data(), out, padded, depth, units.data(), width);
        else
            pack_rows(rows.data(), out, padded, units.data(), width);
    }
};

// y [rows, weight.width] = x [rows, depth] weight; rows of x are `x_stride` apart.
inline void multiply(int64_t rows, const Act *x, int64_t x_stride, const PackedWeight &weight, float *y) {
    multiply(rows, row_major(x, x_stride), weight.units.data(), weight.width, weight.depth, y);
}

// Adds dy^T x to a weight's gradient [out, padded in] and the sum of the rows of dy to its bias's, padded. Rows of dy
// and x are `dy_stride` and `x_stride` apart; `scratch` has room for both as units.
inline void add_weight_gradient(int64_t rows, const Act *dy, int64_t out, int64_t dy_stride, const Act *x,
                                int64_t x_stride, Unit *scratch, float *dweight, float *dbias) {
    int64_t high = round_up(dy_stride), wide = round_up(x_stride);
    Unit *left = scratch, *right = scratch + unit_count(rows) * high;
    pack_rows(dy, rows, dy_stride, left, high);
    pack_rows(x, rows, x_stride, right, wide);
    multiply<true>(out, {left, 1, high}, right, wide, unit_count(rows), dweight);
    Act ones[UNIT_SIZE];
    for (Act &one : ones) one = ONE;
    multiply<true>(1, {reinterpret_cast<const Unit *>(ones), 0, 0}, left, high, unit_count(rows), dbias);
}

} // namespace
