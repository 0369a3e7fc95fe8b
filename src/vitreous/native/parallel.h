// Threads: how work is shared out, how gradient sums are added up in a fixed order, and how a failed allocation leaves
// a parallel region.
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

// Gradient sums are added up in private copies, one for each piece of the work, and there are at most this many copies
// however many threads run. Up to eight threads take three pieces each; more threads take larger and fewer pieces, and
// beyond 24 threads the rest wait in a backward pass. A ViT-B layer (4.7 million sums in its MLP) then needs 450 MB.
constexpr int64_t MAX_SUM_COPIES = 24;

// Collects a failure inside a parallel region. An exception must not leave one: the process would end.
class Failure {
    std::atomic<bool> failed{false};

  public:
    template <class F> void guard(F body) {
        try {
            body();
        } catch (const std::exception &) { // out of memory: nothing else in here throws
            failed = true;
        }
    }
    void rethrow() const {
        if (failed) throw std::bad_alloc();
    }
};

// Runs `body(i)` for i in [0, count), one at a time on any thread.
template <class F> void parallel_for(int64_t count, F body) {
    Failure failure;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < count; i++) failure.guard([&] { body(i); });
    failure.rethrow();
}

// Runs `body(start, size)` on chunks of [first, last), of at most `most` elements and as equal as possible.
template <class F> void for_each_chunk(int64_t first, int64_t last, int64_t most, F body) {
    int64_t chunks = (last - first + most - 1) / most;
    for (int64_t i = 0; i < chunks; i++) {
        int64_t start = first + (last - first) * i / chunks;
        body(start, first + (last - first) * (i + 1) / chunks - start);
    }
}

// Boundaries of the pieces into which [0, count) is cut for `threads` threads. Large pieces come first and small ones
// last, because threads are seldom equally fast and each takes the next piece as soon as it is free.
inline std::vector<int64_t> split_work(int64_t count, int64_t threads, int64_t max_pieces) {
    static constexpr int64_t EIGHTHS[3][3] = {{8}, {6, 2}, {5, 2, 1}}; // of a thread's equal share, by round
    threads = std::min(threads, max_pieces);
    int64_t rounds = std::min<int64_t>(max_pieces / threads, 3), given = 0;
    std::vector<int64_t> bounds{0};
    for (int64_t round = 0; round < rounds; round++)
        for (int64_t t = 0; t < threads; t++) {
            given += EIGHTHS[rounds - 1][round];
            bounds.push_back(count * given / (8 * threads));
        }
    return bounds;
}

// Runs `thread_body(run)` once on every thread: it allocates what the thread needs and calls `run(work)`, which calls
// `work(start, size)` on chunks of [0, count), of at most `most`, until none are left.
template <class F> void parallel_chunks(int64_t count, int64_t most, F thread_body) {
    int64_t threads = omp_get_max_threads();
    const std::vector<int64_t> bounds = split_work(count, threads, 3 * threads);
    std::atomic<size_t> next{0};
    Failure failure;
#pragma omp parallel
    failure.guard([&] {
        thread_body([&](auto work) {
            for (size_t i; (i = next++) + 1 < bounds.size();) for_each_chunk(bounds[i], bounds[i + 1], most, work);
        });
    });
    failure.rethrow();
}

// The sums that a backward pass computes, and where they go: matrices one after another. A private copy has their rows
// padded, as products write them; the result has not. A matrix without a destination is not written.
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

    // One thread's part of the addition: copies are added in order, so that a run can be repeated to the bit.
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

// Like `parallel_chunks`, with `work(start, size, sums)`: sums is the private copy of the piece that the chunk belongs
// to. The result depends on the number of threads, but not on which thread took which piece.
template <class F> void parallel_sum(int64_t count, int64_t most, const SumLayout &layout, F thread_body) {
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
                    for_each_chunk(bounds[i], bounds[i + 1], most,
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
