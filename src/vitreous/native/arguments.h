// How Python calls a kernel: with three arrays (tensors, sizes, numbers). The kernel reads them one by one and checks
// each before it touches any tensor. Every entry point has the same signature and returns 0 or an error code.
#pragma once

#include <cstdint>
#include <exception>
#include <new>

#include "vectors.h"

namespace {

// A tensor as build.py passes it: contiguous, with its type from `Type`. Address 0 means that it is left out.
struct Tensor {
    int64_t address, elements, type;
};
enum Type : int64_t { FLOAT32, UINT8, INT32 };
template <class E> constexpr Type TYPE = FLOAT32;
template <> constexpr Type TYPE<uint8_t> = UINT8;
template <> constexpr Type TYPE<int32_t> = INT32;

// An error code is `Error + 8 * position`, with the position, from 1, of the wrong tensor or size. build.py turns it
// into a message.
enum Error : int64_t { FINE, BAD_ARGUMENTS, BAD_SIZE, MISSING, BAD_TYPE, BAD_ELEMENTS, BAD_VALUES, OUT_OF_MEMORY };
struct Refusal {
    int64_t code;
    Refusal(Error error, int64_t position = 0) : code(error + 8 * position) {}
};

constexpr int64_t MAX_SIZE = int64_t(1) << 31; // of a single size: the sum of a few cannot overflow

// a * b * …; throws Refusal if it overflows.
inline int64_t checked_product(int64_t a) { return a; }
template <class... Rest> int64_t checked_product(int64_t a, int64_t b, Rest... rest) {
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product)) throw Refusal(BAD_SIZE);
    return checked_product(product, rest...);
}
// a + b; throws Refusal if it overflows.
inline int64_t checked_sum(int64_t a, int64_t b) {
    int64_t sum;
    if (__builtin_add_overflow(a, b, &sum)) throw Refusal(BAD_SIZE);
    return sum;
}

// Reads the arguments of a call in order. Throws Refusal if one is missing or wrong.
class Arguments {
    const Tensor *tensors;
    const int64_t *sizes;
    const double *numbers;
    int64_t tensor_count, size_count, number_count, tensor_next = 0, size_next = 0, number_next = 0;

  public:
    Arguments(const Tensor *tensors, int64_t tensor_count, const int64_t *sizes, int64_t size_count,
              const double *numbers, int64_t number_count)
        : tensors(tensors), sizes(sizes), numbers(numbers), tensor_count(tensor_count), size_count(size_count),
          number_count(number_count) {}

    // The next size, which must be from `min` to `max`.
    int64_t size(int64_t min, int64_t max = MAX_SIZE) {
        if (size_next == size_count) throw Refusal(BAD_ARGUMENTS);
        int64_t value = sizes[size_next++];
        if (value < min || value > max) throw Refusal(BAD_SIZE, size_next);
        return value;
    }
    float number() {
        if (number_next == number_count) throw Refusal(BAD_ARGUMENTS);
        return float(numbers[number_next++]);
    }
    // The next tensor, which must hold this number of elements of type E. Null if it is optional and left out.
    template <class E> E *tensor(int64_t elements, bool optional = false) {
        if (tensor_next == tensor_count) throw Refusal(BAD_ARGUMENTS);
        const Tensor &next = tensors[tensor_next++];
        if (!next.address) {
            if (optional || !elements) return nullptr;
            throw Refusal(MISSING, tensor_next);
        }
        if (next.type != TYPE<E>) throw Refusal(BAD_TYPE, tensor_next);
        if (next.elements != elements || next.address % alignof(float)) throw Refusal(BAD_ELEMENTS, tensor_next);
        return reinterpret_cast<E *>(next.address);
    }
    template <class E> E *optional(int64_t elements) { return tensor<E>(elements, true); }

    // How many tensors were read.
    int64_t read_tensors() const { return tensor_next; }

    // Checks that all arguments were read.
    void end() const {
        if (tensor_next != tensor_count || size_next != size_count || number_next != number_count)
            throw Refusal(BAD_ARGUMENTS);
    }
};

// Cuts arrays out of one block of memory; each starts on a new cache line. If `memory` is null, it only counts `bytes`.
// With `clear`, it zeroes the gaps between arrays, so that a call with the same arguments writes the same bytes.
class Cutter {
    char *memory;
    bool clear;

  public:
    int64_t bytes = 0;
    explicit Cutter(void *memory, bool clear = false) : memory(static_cast<char *>(memory)), clear(clear) {}
    template <class E> void cut(E *&array, int64_t count) {
        const int64_t used = checked_product(count, sizeof(E)), size = checked_sum(used, 63) / 64 * 64;
        array = memory ? reinterpret_cast<E *>(memory + bytes) : nullptr;
        if (memory && clear) std::memset(memory + bytes + used, 0, size - used);
        bytes = checked_sum(bytes, size);
    }
};

// Runs an entry point and turns exceptions into error codes. `body(arguments)` reads and checks all arguments before it
// computes anything.
template <class F> int64_t run_kernel(Arguments arguments, F body) {
    try {
        body(arguments);
        return FINE;
    } catch (const Refusal &refusal) {
        return refusal.code;
    } catch (const std::exception &) { // bad_alloc, or length_error for a vector that no memory can hold
        return OUT_OF_MEMORY;
    }
}

} // namespace

// Defines the entry point `name`. The block after it is the body, which reads from `Arguments &arguments`.
#define KERNEL(name)                                                                                                   \
    static void name##_checked(Arguments &arguments);                                                                  \
    extern "C" int64_t name(const Tensor *tensors, int64_t tensor_count, const int64_t *sizes, int64_t size_count,     \
                            const double *numbers, int64_t number_count) {                                             \
        return run_kernel({tensors, tensor_count, sizes, size_count, numbers, number_count}, name##_checked);          \
    }                                                                                                                  \
    static void name##_checked(Arguments &arguments)
