// Threads: how the work is split among them, how they add up gradients in a fixed order, and how a failed allocation is
// reported from a parallel region. Work is split into pieces that free threads take one by one, so a slow core does not
// hold up the others, and the result does not depend on which thread took which piece.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include <omp.h>

#include "vectors.h"

namespace {

// Each piece of the work adds up its gradients in a private copy. This limits the number of copies, and so the memory,
// for any number of threads. Up to 8 threads take three pieces each, more threads take fewer, and in a backward pass
// threads beyond the 24th wait. A ViT-B layer (4.7 million sums in its MLP) then needs at most 450 MB.
constexpr int64_t MAX_SUM_COPIES = 24;

// Records a failure inside a parallel region and rethrows it outside. An exception that leaves the region itself would
// end the process.
class Failure {
    std::atomic<bool> failed{false};

  public:
    template <class F> void guard(F body) {
        try {
            body();
        } catch (const std::exception &) { // out of memory; nothing else throws here
            failed = true;
        }
    }
    void rethrow() const {
        if (failed) throw std::bad_alloc();
    }
};

// Runs `body(i)` for each i in [0, count); the next free thread takes the next i.
template <class F> void parallel_for(int64_t count, F body) {
    Failure failure;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < count; i++) failure.guard([&] { body(i); });
    failure.rethrow();
}

// Cuts [first, last) into chunks of at most `max_size` elements, as equal as possible, and runs `body(start, size)` on
// each.
template <class F> void for_each_chunk(int64_t first, int64_t last, int64_t max_size, F body) {
    int64_t chunks = (last - first + max_size - 1) / max_size;
    for (int64_t i = 0; i < chunks; i++) {
        int64_t start = first + (last - first) * i / chunks;
        body(start, first + (last - first) * (i + 1) / chunks - start);
    }
}

// Boundaries of the pieces of [0, count) for `threads` threads. There are up to three pieces for each thread, large
// ones first and small ones last, so that fast threads take over some of the slow threads' work and all finish
// together.
inline std::vector<int64_t> split_work(int64_t count, int64_t threads, int64_t max_pieces) {
    // Sizes of a thread's first, second and third piece in eighths of count / threads, for one, two or three pieces.
    static constexpr int64_t EIGHTHS[3][3] = {{8}, {6, 2}, {5, 2, 1}};
    threads = std::min(threads, max_pieces);
    int64_t rounds = std::min<int64_t>(max_pieces / threads, 3), eighths = 0;
    std::vector<int64_t> bounds{0};
    for (int64_t round = 0; round < rounds; round++)
        for (int64_t t = 0; t < threads; t++) {
            eighths += EIGHTHS[rounds - 1][round];
            bounds.push_back(count * eighths / (8 * threads));
        }
    return bounds;
}

// Runs `thread_body(run)` once on each thread. It allocates what the thread needs and calls `run(work)`, which calls
// `work(start, size)` on chunks of [0, count) of at most `max_size` elements until none are left.
template <class F> void parallel_chunks(int64_t count, int64_t max_size, F thread_body) {
    int64_t threads = omp_get_max_threads();
    const std::vector<int64_t> bounds = split_work(count, threads, 3 * threads);
    std::atomic<size_t> next{0};
    Failure failure;
#pragma omp parallel
    failure.guard([&] {
        thread_body([&](auto work) {
            for (size_t i; (i = next++) + 1 < bounds.size();) for_each_chunk(bounds[i], bounds[i + 1], max_size, work);
        });
    });
    failure.rethrow();
}

// The gradients that a backward pass sums up, as a list of matrices, and where the results go. In a private copy the
// matrices follow each other and their rows are padded, as products write them. The results are not padded. A matrix
// whose destination is null has no result.
class SumLayout {
  public:
    // Adds a matrix [rows, columns] and returns its offset in a private copy.
    int64_t add(int64_t rows, int64_t columns, float *to) {
        int64_t offset = copy_size;
        matrices.push_back({rows, columns, offset, to});
        copy_size += rows * round_up(columns);
        return offset;
    }
    int64_t size() const { return copy_size; }

    // Adds up `count` copies; each thread adds every `threads`-th row. Copies are always added in the same order, so
    // that a repeated run gives the same bits.
    void add_copies(const float *copies, int64_t count, int64_t thread, int64_t threads) const {
        int64_t number = 0;
        for (const Matrix &matrix : matrices)
            for (int64_t r = 0; r < matrix.rows; r++, number++) {
                if (!matrix.to || number % threads != thread) continue;
                const float *from = copies + matrix.offset + r * round_up(matrix.columns);
                float *to = matrix.to + r * matrix.columns;
                std::memcpy(to, from, matrix.columns * sizeof(float));
                for (int64_t c = 1; c < count; c++) {
                    from += copy_size;
                    for (int64_t i = 0; i < matrix.columns; i++) to[i] += from[i];
                }
            }
    }

  private:
    struct Matrix {
        int64_t rows, columns, offset;
        float *to;
    };
    std::vector<Matrix> matrices;
    int64_t copy_size = 0;
};

// Like `parallel_chunks`, but calls `work(start, size, sums)`, which adds to `sums`, the private copy of the chunk's
// piece. The result depends on the number of threads, but not on which thread took which piece.
template <class F> void parallel_sum(int64_t count, int64_t max_size, const SumLayout &layout, F thread_body) {
    const std::vector<int64_t> bounds = split_work(count, omp_get_max_threads(), MAX_SUM_COPIES);
    const int64_t pieces = int64_t(bounds.size()) - 1;
    std::unique_ptr<float[]> copies(new float[pieces * layout.size()]);
    std::atomic<int64_t> next{0};
    Failure failure;
#pragma omp parallel
    {
        failure.guard([&] {
            thread_body([&](auto work) {
                for (int64_t i; (i = next++) < pieces;) {
                    float *sums = copies.get() + i * layout.size();
                    std::memset(sums, 0, layout.size() * sizeof(float));
                    for_each_chunk(bounds[i], bounds[i + 1], max_size,
                                   [&](int64_t start, int64_t size) { work(start, size, sums); });
                }
            });
        });
#pragma omp barrier
        if (next >= pieces) layout.add_copies(copies.get(), pieces, omp_get_thread_num(), omp_get_num_threads());
    }
    failure.rethrow();
}

} // namespace
