// Products of matrices that fit a core's own cache, and the packing of their operands. A tile of the result stays in
// registers while the product sums over its depth, and each load of the right operand serves a whole tile column.
//
// Operands consist of 32-bit units: one float, or two bfloat16 that are neighbours along the depth (the dimension that
// is summed over), as the bfloat16 instruction of AVX-512 takes them. The left operand is read by strides. The right
// operand is packed, [depth in units, width]. Results are float32, row major.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "vectors.h"

namespace {

// Rows that a thread works on at a time: enough for fast products, few enough for its cache.
constexpr int64_t CHUNK_ROWS = 160;

typedef int32_t Unit;
#ifdef BFLOAT16
constexpr int UNIT_SIZE = 2; // activations in a unit
#else
constexpr int UNIT_SIZE = 1;
#endif
// Units that hold `count` elements along the depth.
inline int64_t unit_count(int64_t count) { return (count + UNIT_SIZE - 1) / UNIT_SIZE; }

// A tile of the result has at most ACCUMULATORS registers, and at most MAX_TILE_WIDTH vectors in a row.
#ifdef __AVX512F__
constexpr int ACCUMULATORS = 24, MAX_TILE_WIDTH = 4;
#else
constexpr int ACCUMULATORS = 12, MAX_TILE_WIDTH = 2;
#endif
constexpr int MAX_TILE_HEIGHT = 12;

// sum + a b, for one unit a and a vector of units b.
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

// The left operand [rows, depth]; strides are in units. Its depth may consist of several lines, `line_stride` apart,
// with which a convolution reads the three lines of its window.
struct LeftOperand {
    const Unit *units;
    int64_t row_stride, depth_stride, lines = 1, line_stride = 0;
};
inline LeftOperand row_major(const Act *rows, int64_t width) {
    return {reinterpret_cast<const Unit *>(rows), width / UNIT_SIZE, 1};
}

// One tile: c [HEIGHT, WIDTH * LANES] = a [HEIGHT, depth] b [depth, WIDTH * LANES], or += with ADD. The rows of b and c
// are `b_stride` and `c_stride` apart.
template <bool ADD, int WIDTH, int HEIGHT>
void multiply_tile(LeftOperand a, const Unit *b, int64_t b_stride, int64_t depth, float *c, int64_t c_stride) {
    Vec sums[HEIGHT][WIDTH] = {};
    for (int64_t line = 0; line < a.lines; line++, a.units += a.line_stride)
        for (int64_t i = 0; i < depth; i++, b += b_stride) {
            Int right[WIDTH];
#pragma GCC unroll 4
            for (int w = 0; w < WIDTH; w++) std::memcpy(&right[w], b + w * LANES, sizeof right[w]);
#pragma GCC unroll 24
            for (int m = 0; m < HEIGHT; m++)
#pragma GCC unroll 4
                for (int w = 0; w < WIDTH; w++)
                    sums[m][w] = multiply_add(sums[m][w], a.units[m * a.row_stride + i * a.depth_stride], right[w]);
        }
#pragma GCC unroll 24
    for (int m = 0; m < HEIGHT; m++)
#pragma GCC unroll 4
        for (int w = 0; w < WIDTH; w++) {
            float *to = c + m * c_stride + w * LANES;
            store(to, ADD ? load(to) + sums[m][w] : sums[m][w]);
        }
}

// One column of tiles: the same for any number of rows, `height` <= HEIGHT at a time. The tile's height must be a
// template parameter for its sums to stay in registers; the recursion goes from HEIGHT down to `height`.
template <bool ADD, int WIDTH, int HEIGHT>
void multiply_column(int64_t rows, int64_t height, LeftOperand a, const Unit *b, int64_t b_stride, int64_t depth,
                     float *c, int64_t c_stride) {
    if constexpr (HEIGHT > 1)
        if (height < HEIGHT)
            return multiply_column<ADD, WIDTH, HEIGHT - 1>(rows, height, a, b, b_stride, depth, c, c_stride);
    for (; rows >= HEIGHT; rows -= HEIGHT, a.units += HEIGHT * a.row_stride, c += HEIGHT * c_stride)
        multiply_tile<ADD, WIDTH, HEIGHT>(a, b, b_stride, depth, c, c_stride);
    if constexpr (HEIGHT > 1)
        if (rows) multiply_column<ADD, WIDTH, HEIGHT - 1>(rows, rows, a, b, b_stride, depth, c, c_stride);
}

// c [rows, width] = a [rows, depth] b [depth, width], or += with ADD. `width` must be a multiple of LANES. `depth` is
// that of one line of a, in units.
template <bool ADD = false>
void multiply(int64_t rows, LeftOperand a, const Unit *b, int64_t width, int64_t depth, float *c) {
    for (int64_t left = width / LANES; left > 0;) { // makes tiles as equal in width and height as possible
        int64_t columns = (left + MAX_TILE_WIDTH - 1) / MAX_TILE_WIDTH, vectors = (left + columns - 1) / columns;
        int64_t max_height = std::min<int64_t>(ACCUMULATORS / vectors, MAX_TILE_HEIGHT);
        int64_t tiles = (rows + max_height - 1) / max_height;
        int64_t height = (rows + tiles - 1) / tiles, column = width - left * LANES;
        auto run = [&](auto kernel) { kernel(rows, height, a, b + column, width, depth, c + column, width); };
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
// Units whose lower halves are `low` and whose upper halves are `high`.
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

// Interleaves two rows [width] into units [width]. A null second row stands for zeros. A float unit holds only the
// first row.
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

// Packs rows [count, width] as the operand of a product that sums over the rows: units [unit_count(count), stride].
inline void pack_rows(const Act *from, int64_t count, int64_t width, Unit *to, int64_t stride) {
    for (int64_t n = 0; n < count; n += UNIT_SIZE)
        pack_row_pair(from + n * width, n + 1 < count ? from + (n + 1) * width : nullptr, width,
                      to + n / UNIT_SIZE * stride);
}

// Packs rows [count, width] as the right operand of a product that sums over the columns: the transpose of each row's
// first `depth` units, [depth, stride].
inline void transpose(const Act *from, int64_t count, int64_t width, int64_t depth, Unit *to, int64_t stride) {
    const Unit *units = reinterpret_cast<const Unit *>(from);
    for (int64_t n = 0; n < count; n++)
        for (int64_t i = 0; i < depth; i++) to[i * stride + n] = units[n * (width / UNIT_SIZE) + i];
}

// The weight [out, in] of a linear layer, packed as the right operand of the forward product with x [rows, in] or of
// the backward product with dy [rows, out].
enum Direction { FORWARD, BACKWARD };
struct PackedWeight {
    int64_t depth, width; // in units; of the result, padded
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

// y [rows, weight.width] = x [rows, …] weight. The rows of x are `x_stride` elements apart.
inline void multiply(int64_t rows, const Act *x, int64_t x_stride, const PackedWeight &weight, float *y) {
    multiply(rows, row_major(x, x_stride), weight.units.data(), weight.width, weight.depth, y);
}

// The gradients of a linear layer: dweight [out, padded in] += dy^T x, and dbias [padded out] += the sum of the rows of
// dy. The rows of dy [rows, out] and x [rows, in] are `dy_stride` and `x_stride` apart. `scratch` must hold both as
// units.
inline void add_weight_gradient(int64_t rows, const Act *dy, int64_t out, int64_t dy_stride, const Act *x,
                                int64_t x_stride, Unit *scratch, float *dweight, float *dbias) {
    int64_t padded_out = round_up(dy_stride), padded_in = round_up(x_stride);
    Unit *left = scratch, *right = scratch + unit_count(rows) * padded_out;
    pack_rows(dy, rows, dy_stride, left, padded_out);
    pack_rows(x, rows, x_stride, right, padded_in);
    multiply<true>(out, {left, 1, padded_out}, right, padded_in, unit_count(rows), dweight);
    Act ones[UNIT_SIZE];
    for (Act &one : ones) one = ONE;
    multiply<true>(1, {reinterpret_cast<const Unit *>(ones), 0, 0}, left, padded_out, unit_count(rows), dbias);
}

} // namespace
