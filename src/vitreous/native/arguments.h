// How Python calls a kernel: three arrays (tensors, sizes, numbers), read one by one and checked before any memory is
// touched. Every entry point has the same signature and returns 0 or an error code.
#pragma once

#include <cstdint>
#include <exception>
#include <new>

#include "vectors.h"

namespace {

// As build.py lays them out. Memory is contiguous; address 0 stands for a tensor that is left out.
struct Tensor {
    int64_t address, elements, type;
};
enum Type : int64_t { FLOAT32, UINT8, INT32 };
template <class E> constexpr Type TYPE = FLOAT32;
template <> constexpr Type TYPE<uint8_t> = UINT8;
template <> constexpr Type TYPE<int32_t> = INT32;

// The code is `Error + 8 * position`: the position of the tensor or size that is wrong. Python has the sentences.
enum Error : int64_t { FINE, BAD_ARGUMENTS, BAD_SIZE, MISSING, BAD_TYPE, BAD_ELEMENTS, BAD_VALUES, OUT_OF_MEMORY };
struct Refusal {
    int64_t code;
    Refusal(Error error, int64_t position = 0) : code(error + 8 * position) {}
};

constexpr int64_t MAX_SIZE = int64_t(1) << 31; // of a single size, so that sums of a few cannot overflow

// a * b * …, refused if it overflows.
inline int64_t checked_product(int64_t a) { return a; }
template <class... Rest> int64_t checked_product(int64_t a, int64_t b, Rest... rest) {
    int64_t product;
    if (__builtin_mul_overflow(a, b, &product)) throw Refusal(BAD_SIZE);
    return checked_product(product, rest...);
}
inline int64_t checked_sum(int64_t a, int64_t b) {
    int64_t sum;
    if (__builtin_add_overflow(a, b, &sum)) throw Refusal(BAD_SIZE);
    return sum;
}

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

    // The next size, at least `least` and at most `most`.
    int64_t size(int64_t least, int64_t most = MAX_SIZE) {
        if (size_next == size_count) throw Refusal(BAD_ARGUMENTS);
        int64_t value = sizes[size_next++];
        if (value < least || value > most) throw Refusal(BAD_SIZE, size_next);
        return value;
    }
    float number() {
        if (number_next == number_count) throw Refusal(BAD_ARGUMENTS);
        return float(numbers[number_next++]);
    }
    // The next tensor, of E and with so many elements. It may be left out only if it is `optional`.
    template <class E> E *tensor(int64_t elements, bool optional = false) {
        if (tensor_next == tensor_count) throw Refusal(BAD_ARGUMENTS);
        const Tensor &given = tensors[tensor_next++];
        if (!given.address) {
            if (optional || !elements) return nullptr;
            throw Refusal(MISSING, tensor_next);
        }
        if (given.type != TYPE<E>) throw Refusal(BAD_TYPE, tensor_next);
        if (given.elements != elements || given.address % alignof(float)) throw Refusal(BAD_ELEMENTS, tensor_next);
        return reinterpret_cast<E *>(given.address);
    }
    template <class E> E *optional(int64_t elements) { return tensor<E>(elements, true); }

    // Elements of the next tensor, for those whose number does not follow from the sizes.
    int64_t next_elements() const { return tensor_next < tensor_count ? tensors[tensor_next].elements : 0; }

    int64_t read_tensors() const { return tensor_next; }

    // Refuses arguments that nothing reads.
    void end() const {
        if (tensor_next != tensor_count || size_next != size_count || number_next != number_count)
            throw Refusal(BAD_ARGUMENTS);
    }
};

// Cuts arrays out of one piece of memory, each on a cache line of its own. Without memory it only counts `bytes`. With
// `clear` it zeroes the gaps, so that the same arguments leave the same bytes.
class Cutter {
    char *at;
    bool clear;

  public:
    int64_t bytes = 0;
    explicit Cutter(void *memory, bool clear = false) : at(static_cast<char *>(memory)), clear(clear) {}
    template <class E> void cut(E *&piece, int64_t count) {
        const int64_t used = checked_product(count, sizeof(E)), size = checked_sum(used, 63) / 64 * 64;
        piece = at ? reinterpret_cast<E *>(at + bytes) : nullptr;
        if (at && clear) std::memset(at + bytes + used, 0, size - used);
        bytes = checked_sum(bytes, size);
    }
};

// Runs an entry point: `body(arguments)` reads and checks all of its arguments, then works.
template <class F> int64_t run_kernel(Arguments arguments, F body) {
    try {
        body(arguments);
        return FINE;
    } catch (const Refusal &refusal) {
        return refusal.code;
    } catch (const std::exception &) { // bad_alloc, or length_error for a vector beyond all memory
        return OUT_OF_MEMORY;
    }
}

} // namespace

// Defines the entry point `name`; the block that follows has `Arguments &arguments`.
#define KERNEL(name)                                                                                                   \
    static void name##_checked(Arguments &arguments);                                                                  \
    extern "C" int64_t name(const Tensor *tensors, int64_t tensor_count, const int64_t *sizes, int64_t size_count,     \
                            const double *numbers, int64_t number_count) {                                             \
        return run_kernel({tensors, tensor_count, sizes, size_count, numbers, number_count}, name##_checked);          \
    }                                                                                                                  \
    static void name##_checked(Arguments &arguments)
