// Runs every kernel forward and backward without Python, for the sanitizers (`make test-native`): several shapes,
// widths that are not multiples of a register's, one and three threads, wrong arguments, and failed allocations, one by
// one.

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <string>

#include "kernels.cpp"

// ---- an allocator that can fail, unless the sanitizer has its own allocator

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define OWN_ALLOCATOR 0
#endif
#endif
#ifndef OWN_ALLOCATOR
#define OWN_ALLOCATOR 1
#endif

#if OWN_ALLOCATOR
static std::atomic<int64_t> allocations{0}, fails_at{-1};

void *operator new(size_t size) {
    if (allocations++ == fails_at) throw std::bad_alloc();
    if (void *memory = std::malloc(size ? size : 1)) return memory;
    throw std::bad_alloc();
}
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, size_t) noexcept { std::free(memory); }
#endif

// ---- a call of a kernel, with its arguments in order

using Kernel = int64_t (*)(const Tensor *, int64_t, const int64_t *, int64_t, const double *, int64_t);
using Floats = std::vector<float>;

static int failures = 0;
static void expect(bool holds, const std::string &what) {
    if (holds) return;
    std::printf("FAILED: %s\n", what.c_str());
    failures++;
}

struct Call {
    std::string name;
    Kernel kernel;
    std::vector<int64_t> sizes;
    std::vector<double> numbers;
    std::vector<Tensor> tensors;

    void add(Floats &values) { tensors.push_back({int64_t(values.data()), int64_t(values.size()), FLOAT32}); }
    void add(std::vector<uint8_t> &bytes) { tensors.push_back({int64_t(bytes.data()), int64_t(bytes.size()), UINT8}); }
    void add(std::vector<int32_t> &keys) { tensors.push_back({int64_t(keys.data()), int64_t(keys.size()), INT32}); }
    void skip() { tensors.push_back({0, 0, 0}); }
    int64_t run() const {
        return kernel(tensors.data(), tensors.size(), sizes.data(), sizes.size(), numbers.data(), numbers.size());
    }
};

static std::mt19937 generator(1);
static Floats random_floats(int64_t count, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    Floats values(count);
    for (float &value : values) value = normal(generator);
    return values;
}
static Floats unwritten(int64_t count) { return Floats(count, NAN); }

static bool finite(const Floats &values) {
    return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}
static double distance(const Floats &a, const Floats &b) {
    double difference = 0, size = 1e-30;
    for (size_t i = 0; i < a.size(); i++) difference += std::pow(a[i] - b[i], 2), size += std::pow(b[i], 2);
    return std::sqrt(difference / size);
}

// The kernel refuses sizes and tensors that contradict each other.
static void check_wrong_arguments(const Call &call) {
    for (size_t i = 0; i < call.tensors.size(); i++) {
        if (!call.tensors[i].address) continue;
        Call wrong = call;
        wrong.tensors[i].elements--;
        expect(wrong.run() % 8 == BAD_ELEMENTS, call.name + ": a tensor too small");
        wrong.tensors[i].elements++, wrong.tensors[i].type += 1;
        expect(wrong.run() % 8 == BAD_TYPE, call.name + ": a tensor of another type");
    }
    for (int64_t value : {int64_t(-1), int64_t(1) << 30, INT64_MAX, INT64_MIN}) {
        Call wrong = call;
        for (int64_t &size : wrong.sizes) size = value;
        expect(wrong.run() != FINE, call.name + ": wrong sizes");
    }
}

// Each allocation fails once. The kernel reports each failure, and works again afterwards.
static void check_allocations([[maybe_unused]] const Call &call) {
#if OWN_ALLOCATOR
    int64_t count = 0;
    for (;; count++) {
        allocations = 0, fails_at = count;
        int64_t code = call.run();
        bool reached = allocations > count;
        fails_at = -1;
        if (!reached) {
            expect(code == FINE, call.name + ": fails though no allocation failed");
            break;
        }
        expect(code == OUT_OF_MEMORY, call.name + ": a failed allocation is not reported");
    }
    expect(count > 0, call.name + ": no allocation was tested");
#endif
}

// Runs the calls of `prepare(outputs)` with one thread and twice with three. `exact` outputs must not depend on the
// number of threads; `sums` may, but must repeat for the same number.
struct Outputs {
    std::map<std::string, Floats> exact, sums;
};
static void check(const std::string &name, const std::function<std::vector<Call>(Outputs &)> &prepare) {
    Outputs results[3];
    const int threads[3] = {1, 3, 3};
    for (int i = 0; i < 3; i++) {
        generator.seed(7);
        omp_set_num_threads(threads[i]);
        const std::vector<Call> calls = prepare(results[i]);
        for (const Call &call : calls) expect(call.run() == FINE, name + ": " + call.name);
        for (auto *group : {&results[i].exact, &results[i].sums})
            for (auto &[key, values] : *group) expect(finite(values), name + ": " + key + " is not finite");
        if (i == 1)
            for (const Call &call : calls)
                if (call.name != "muon") check_wrong_arguments(call), check_allocations(call);
        if (i == 2) break;
    }
    for (auto &[key, values] : results[0].exact)
        expect(values == results[2].exact[key], name + ": " + key + " depends on the threads");
    for (auto &[key, values] : results[0].sums) {
        expect(distance(values, results[2].sums[key]) < 1e-4, name + ": " + key + " depends on the number of threads");
        if (name != "muon")
            expect(results[1].sums[key] == results[2].sums[key], name + ": " + key + " does not repeat");
    }
    std::printf("%s: done\n", name.c_str());
}

static void check_encoder(int64_t B, int64_t N, int64_t H, int64_t K, int64_t M, int64_t out_tokens, bool extras,
                          uint32_t threshold) {
    const Sizes s{B, N, H, K, M, H * K};
    const int64_t layers = 2;
    Floats x = random_floats(B * N * s.D), dout = random_floats(B * out_tokens * s.D);
    std::vector<int32_t> keys(layers * 2 * B);
    for (int32_t &key : keys) key = int32_t(generator());
    std::vector<Floats> weights;
    int64_t total = 0;
    for (int64_t i = 0; i < layers * FIELDS; i++) {
        const Shape size = shape(i % FIELDS, s);
        weights.push_back(random_floats(size.optional && !extras ? 0 : size.rows * size.columns, 0.2f));
        total += weights.back().size();
    }
    Cutter count(nullptr);
    for (int64_t i = 0; i < layers; i++) Kept(count, s, i + 1 == layers ? out_tokens : N, extras);
    std::vector<uint8_t> kept;
    std::string name = "encoder " + std::to_string(s.D) + (extras ? " with" : " without") + " optional weights";
    check(name, [&](Outputs &outputs) {
        kept.assign(count.bytes, 0xff);
        Floats &out = outputs.exact["out"] = unwritten(B * out_tokens * s.D);
        Floats &dx = outputs.exact["dx"] = unwritten(B * N * s.D);
        Floats &gradients = outputs.sums["gradients"] = unwritten(total);
        const std::vector<int64_t> sizes{layers, layers, out_tokens, B, N, H, K, M, threshold};
        Call forward{"encoder", encoder, sizes, {1e-6, 1.25}, {}};
        Call backward{"encoder_backward", encoder_backward, sizes, {1.25}, {}};
        forward.add(x), forward.add(out), backward.add(dout), backward.add(dx);
        for (Call *call : {&forward, &backward}) {
            threshold ? call->add(keys) : call->skip();
            for (Floats &weight : weights) weight.empty() ? call->skip() : call->add(weight);
            call->add(kept);
        }
        backward.add(gradients);
        return std::vector<Call>{forward, backward};
    });
}

static void check_pool(int64_t B, int64_t N, int64_t D) {
    Floats x = random_floats(B * N * D), dout = random_floats(B * D), kept(B * N * 3);
    Floats norm = random_floats(D), bias = random_floats(D), query = random_floats(D);
    check("pool " + std::to_string(D), [&](Outputs &outputs) {
        Floats &out = outputs.exact["out"] = unwritten(B * D), &dx = outputs.exact["dx"] = unwritten(B * N * D);
        Floats &gradients = outputs.sums["gradients"] = unwritten(3 * D);
        Call forward{"pool", pool, {B, N, D}, {1e-6}, {}}, backward{"pool_backward", pool_backward, {B, N, D}, {}, {}};
        for (Floats *tensor : {&x, &out, &kept, &norm, &bias, &query}) forward.add(*tensor);
        for (Floats *tensor : {&dout, &dx, &x, &kept, &norm, &bias, &query, &gradients}) backward.add(*tensor);
        return std::vector<Call>{forward, backward};
    });
}

static void check_stem(int64_t B, int64_t S, int64_t step, int64_t D, std::vector<int64_t> channels,
                       bool with_position) {
    std::vector<int64_t> sizes{B, S, step, D, int64_t(channels.size())};
    sizes.insert(sizes.end(), channels.begin(), channels.end());
    Arguments arguments(nullptr, 0, sizes.data(), sizes.size(), nullptr, 0);
    StemSizes stem_sizes(arguments);
    Cutter count(nullptr);
    stem_sizes.cut(count);
    const int64_t N = stem_sizes.N;
    Floats x = random_floats(B * 3 * S * S), dout = random_floats(B * N * D), position = random_floats(N * D);
    Floats whitening = random_floats(24 * 12);
    for (int64_t i = 0; i < 144; i++) whitening[144 + i] = -whitening[i];
    std::vector<Floats> weights{random_floats(D * channels.back(), 0.2f), random_floats(D)};
    int64_t input = WHITENED;
    for (int64_t C : channels) {
        for (int64_t elements : {C * input * 9, C, C}) weights.push_back(random_floats(elements, 0.2f));
        input = C;
    }
    int64_t total = 0;
    for (const Floats &weight : weights) total += weight.size();
    std::vector<uint8_t> kept;
    check("stem " + std::to_string(S), [&](Outputs &outputs) {
        kept.assign(count.bytes, 0xff);
        Floats &out = outputs.exact["out"] = unwritten(B * N * D);
        Floats &gradients = outputs.sums["gradients"] = unwritten(total);
        Call forward{"stem", stem, sizes, {1e-6}, {}}, backward{"stem_backward", stem_backward, sizes, {}, {}};
        for (int64_t stride : {3 * S * S, S * S, S, int64_t(1)}) forward.sizes.push_back(stride);
        forward.add(x), forward.add(out), forward.add(kept);
        with_position ? forward.add(position) : forward.skip();
        forward.add(whitening), backward.add(dout), backward.add(kept);
        for (size_t i = 0; i < weights.size(); i++) {
            forward.add(weights[i]);
            if (i != 1) backward.add(weights[i]); // the projection's bias
        }
        backward.add(gradients);
        with_position ? backward.add(outputs.sums["dposition"] = unwritten(N * D)) : backward.skip();
        return std::vector<Call>{forward, backward};
    });
}

static void check_muon() {
    const int64_t shapes[][2] = {{12, 8}, {8, 12}, {33, 70}, {70, 33}, {24, 45}, {1, 16}};
    std::vector<Floats> grads;
    for (auto [rows, columns] : shapes) grads.push_back(random_floats(rows * columns));
    check("muon", [&](Outputs &outputs) {
        Call call{"muon", muon, {int64_t(grads.size()), 5}, {0.1, 0.9, 0.1, 3.4445, -4.7750, 2.0315}, {}};
        for (size_t i = 0; i < grads.size(); i++) {
            const int64_t size = shapes[i][0] * shapes[i][1];
            call.sizes.insert(call.sizes.end(), {shapes[i][0], shapes[i][1]});
            call.add(outputs.exact["weight " + std::to_string(i)] = random_floats(size));
            call.add(outputs.exact["momentum " + std::to_string(i)] = Floats(size));
            call.add(grads[i]);
        }
        if (omp_get_max_threads() == 3) { // on copies, because a step changes its weights
            Call copy = call;
            std::vector<Floats> copies;
            for (size_t i = 0; i < call.tensors.size(); i++)
                if (i % 3 != 2) {
                    copies.emplace_back(call.tensors[i].elements, 1.0f);
                    copy.tensors[i].address = int64_t(copies.back().data());
                }
            check_wrong_arguments(copy), check_allocations(copy);
        }
        return std::vector<Call>{call};
    });
}

static void check_split() {
    for (int64_t threads = 1; threads <= 200; threads++)
        for (int64_t count : {1, 7, 1000}) {
            const std::vector<int64_t> bounds = split_work(count, threads, MAX_SUM_COPIES);
            expect(bounds.size() <= 24 + 1, "more copies of sums than the limit");
            expect(bounds.front() == 0 && bounds.back() == count && std::is_sorted(bounds.begin(), bounds.end()),
                   "pieces do not cover the work");
            if (threads <= MAX_SUM_COPIES / 3) // the limit does not matter yet
                expect(bounds == split_work(count, threads, 3 * threads), "fewer pieces than without the limit");
        }
}

int main() {
    check_split();
    check_encoder(3, 17, 2, 20, 56, 17, true, 0);
    check_encoder(5, 16, 3, 16, 40, 16, false, 1u << 30);
    check_encoder(4, 33, 1, 18, 17, 1, true, 1u << 31);
    check_encoder(2, 170, 2, 16, 32, 2, false, 0); // more tokens than CHUNK_ROWS
    check_pool(3, 5, 40);
    check_pool(7, 17, 16);
    check_stem(3, 13, 1, 40, {20, 36, 36}, true);
    check_stem(2, 12, 1, 17, {17, 17}, false);
    check_stem(2, 18, 1, 33, {16, 35, 21, 21}, true);
    check_stem(2, 20, 2, 24, {20, 36, 36}, true); // a row of pixels is left over
    check_stem(3, 9, 2, 17, {17, 17}, false);
    check_muon();
    std::printf(failures ? "%d failures\n" : "no failures\n", failures);
    return failures != 0;
}
