// A step of the Muon optimizer, one matrix per core.

#include <algorithm>
#include <numeric>

#include "arguments.h"
#include "parallel.h"
#include "products.h"

namespace {

struct MuonSettings {
    float rate, momentum, decay;
    int64_t steps;
    float a, b, c; // of the polynomial a x + b x^3 + c x^5
};

struct Matrix {
    float *weight, *average;
    const float *grad;
    int64_t rows, columns;
    double cost() const { return double(std::min(rows, columns)) * rows * columns; }
};

// Updates the momentum, and the weight by the nearest semi-orthogonal matrix (Newton-Schulz steps) and decay.
void muon_step(const Matrix &matrix, const MuonSettings &settings) {
    const auto [weight, average, grad, R, C] = matrix;
    const float rate = settings.rate, momentum = settings.momentum, a = settings.a, b = settings.b, c = settings.c;
    const int64_t size = R * C;
    // x [low, wide]: the matrix, transposed if it has more rows than columns. Both are padded with zeros, which stay.
    const bool tall = R > C;
    const int64_t low = round_up(tall ? C : R), wide = round_up(tall ? R : C);
    std::vector<float> flat(size), x(low * wide), y(low * wide), gram(low * low), squared(low * low);
    std::vector<Act> left(low * wide);
    std::vector<Unit> right(low / UNIT_SIZE * wide);
    Vec square = {};
    for_each_vector(size, [&, average = average, grad = grad](int64_t i, auto done) {
        Vec g = load(grad + i), m = load(average + i), now = m + (1.0f - momentum) * (g - m);
        store_new_lanes(average + i, now, done);
        Vec v = g + momentum * (load(average + i) - g);
        store(&flat[i], v);
        square += keep_new_lanes(v * v, done);
    });
    const float factor = 1.0f / (__builtin_sqrtf(sum_lanes(square)) + 1e-7f);
    auto place = [=](int64_t r, int64_t i) { return tall ? i * wide + r : r * wide + i; };
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = 0; i < C; i++) x[place(r, i)] = flat[r * C + i] * factor;
    auto fill = [](int64_t elements, auto to, auto value) {
        for (int64_t i = 0; i < elements; i += LANES) store(to + i, value(i));
    };
    for (int64_t step = 0; step < settings.steps; step++) {
        // gram = x x^T
        fill(low * wide, left.data(), [&](int64_t i) { return load(&x[i]); });
        transpose(left.data(), low, wide, wide / UNIT_SIZE, right.data(), low);
        multiply(low, row_major(left.data(), wide), right.data(), low, wide / UNIT_SIZE, gram.data());
        // squared = gram gram
        fill(low * low, left.data(), [&](int64_t i) { return load(&gram[i]); });
        pack_rows(left.data(), low, low, right.data(), low);
        multiply(low, row_major(left.data(), low), right.data(), low, low / UNIT_SIZE, squared.data());
        // x = a x + (b gram + c squared) x
        fill(low * wide, left.data(), [&](int64_t i) { return load(&x[i]); });
        pack_rows(left.data(), low, wide, right.data(), wide);
        fill(low * low, left.data(), [&](int64_t i) { return b * load(&gram[i]) + c * load(&squared[i]); });
        multiply(low, row_major(left.data(), low), right.data(), wide, low / UNIT_SIZE, y.data());
        fill(low * wide, x.data(), [&](int64_t i) { return a * load(&x[i]) + load(&y[i]); });
    }
    const float scale = rate * __builtin_sqrtf(std::max(1.0f, float(R) / float(C)));
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = 0; i < C; i++) {
            float &w = weight[r * C + i];
            w = w * (1.0f - rate * settings.decay) - scale * x[place(r, i)];
        }
}

} // namespace

// Sizes: number of matrices, steps, then rows and columns of each. Tensors: for each matrix its weight and momentum,
// both updated in place, and its gradient. Numbers: learning rate, momentum, decay, a, b, c.
KERNEL(muon) {
    const int64_t count = arguments.size(0, 1 << 20);
    MuonSettings settings;
    settings.steps = arguments.size(0, 1 << 10);
    settings.rate = arguments.number(), settings.momentum = arguments.number(), settings.decay = arguments.number();
    settings.a = arguments.number(), settings.b = arguments.number(), settings.c = arguments.number();
    std::vector<Matrix> matrices;
    for (int64_t i = 0; i < count; i++) {
        Matrix m;
        m.rows = arguments.size(1), m.columns = arguments.size(1);
        const int64_t elements = checked_product(m.rows, m.columns);
        if (elements < MIN_WIDTH) throw Refusal(BAD_SIZE);
        m.weight = arguments.tensor<float>(elements), m.average = arguments.tensor<float>(elements);
        m.grad = arguments.tensor<float>(elements);
        matrices.push_back(m);
    }
    arguments.end();

    // The dearest first, so that no core starts on it when the others are nearly done.
    std::sort(matrices.begin(), matrices.end(),
              [](const Matrix &one, const Matrix &other) { return one.cost() > other.cost(); });
    parallel_for(count, [&](int64_t i) { muon_step(matrices[i], settings); });
}
