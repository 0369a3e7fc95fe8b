// A step of the Muon optimizer (kellerjordan.github.io/posts/muon) for all matrices of a network. Each core takes one
// matrix at a time through all Newton-Schulz steps in its own cache. The largest matrices come first.
//
// Weights, momenta and gradients are float32 [rows, columns], row major. The operands of products are `Act`.

#include <algorithm>
#include <numeric>

#include "arguments.h"
#include "parallel.h"
#include "products.h"

namespace {

struct MuonSettings {
    float learning_rate, momentum, decay;
    int64_t steps;
    float a, b, c; // of the polynomial a x + b x^3 + c x^5
};

struct Matrix {
    float *weight, *average;
    const float *grad;
    int64_t rows, columns;
    double cost() const { return double(std::min(rows, columns)) * rows * columns; }
};

// Updates the momentum, then the weight: weight decay, and a step along the (approximately) nearest semi-orthogonal
// matrix to the Nesterov momentum, which Newton-Schulz steps compute.
void muon_step(const Matrix &matrix, const MuonSettings &settings) {
    const auto [weight, average, grad, R, C] = matrix;
    const float learning_rate = settings.learning_rate, momentum = settings.momentum, a = settings.a, b = settings.b,
                c = settings.c;
    const int64_t size = R * C;
    // x [low, wide] is the matrix, transposed if it has more rows than columns, so that gram is as small as possible.
    // Both sizes are padded; the padding is zero and stays zero.
    const bool tall = R > C;
    const int64_t low = round_up(tall ? C : R), wide = round_up(tall ? R : C);
    std::vector<float> nesterov(size), x(low * wide), y(low * wide), gram(low * low), squared(low * low);
    std::vector<Act> left(low * wide);
    std::vector<Unit> right(low / UNIT_SIZE * wide);
    Vec square = {};
    for_each_vector(size, [&, average = average, grad = grad](int64_t i, auto done) {
        Vec g = load(grad + i), m = load(average + i), updated = m + (1.0f - momentum) * (g - m);
        store_new_lanes(average + i, updated, done);
        Vec v = g + momentum * (load(average + i) - g);
        store(&nesterov[i], v);
        square += keep_new_lanes(v * v, done);
    });
    const float factor = 1.0f / (__builtin_sqrtf(sum_lanes(square)) + 1e-7f);
    auto index = [=](int64_t r, int64_t i) { return tall ? i * wide + r : r * wide + i; };
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = 0; i < C; i++) x[index(r, i)] = nesterov[r * C + i] * factor;
    auto store_all = [](int64_t elements, auto to, auto value) {
        for (int64_t i = 0; i < elements; i += LANES) store(to + i, value(i));
    };
    for (int64_t step = 0; step < settings.steps; step++) {
        // gram = x x^T
        store_all(low * wide, left.data(), [&](int64_t i) { return load(&x[i]); });
        transpose(left.data(), low, wide, wide / UNIT_SIZE, right.data(), low);
        multiply(low, row_major(left.data(), wide), right.data(), low, wide / UNIT_SIZE, gram.data());
        // squared = gram gram
        store_all(low * low, left.data(), [&](int64_t i) { return load(&gram[i]); });
        pack_rows(left.data(), low, low, right.data(), low);
        multiply(low, row_major(left.data(), low), right.data(), low, low / UNIT_SIZE, squared.data());
        // x = a x + (b gram + c squared) x
        store_all(low * wide, left.data(), [&](int64_t i) { return load(&x[i]); });
        pack_rows(left.data(), low, wide, right.data(), wide);
        store_all(low * low, left.data(), [&](int64_t i) { return b * load(&gram[i]) + c * load(&squared[i]); });
        multiply(low, row_major(left.data(), low), right.data(), wide, low / UNIT_SIZE, y.data());
        store_all(low * wide, x.data(), [&](int64_t i) { return a * load(&x[i]) + load(&y[i]); });
    }
    const float scale = learning_rate * __builtin_sqrtf(std::max(1.0f, float(R) / float(C)));
    for (int64_t r = 0; r < R; r++)
        for (int64_t i = 0; i < C; i++) {
            float &w = weight[r * C + i];
            w = w * (1.0f - learning_rate * settings.decay) - scale * x[index(r, i)];
        }
}

} // namespace

// Sizes: number of matrices, number of Newton-Schulz steps, then rows and columns of each matrix. Tensors: for each
// matrix its weight and momentum, both updated in place, and its gradient. Numbers: learning rate, momentum, decay, a,
// b, c.
KERNEL(muon) {
    const int64_t count = arguments.size(0, 1 << 20);
    MuonSettings settings;
    settings.steps = arguments.size(0, 1 << 10);
    settings.learning_rate = arguments.number(), settings.momentum = arguments.number(),
    settings.decay = arguments.number();
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

    // The most expensive matrices come first, so that no core starts on one when the others are nearly done.
    std::sort(matrices.begin(), matrices.end(),
              [](const Matrix &one, const Matrix &other) { return one.cost() > other.cost(); });
    parallel_for(count, [&](int64_t i) { muon_step(matrices[i], settings); });
}
