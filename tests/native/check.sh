#!/bin/sh
# Runs the driver under the sanitizers for both types of activations (`make test-native`), and says which cannot run here.
set -eu
here=$(dirname "$0")
source="$here/../../src/vitreous/native"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
flags="-O1 -g -march=native -std=c++17 -fno-strict-aliasing -fopenmp -Wno-psabi -I$source"

can() { # compiler, sanitizer: whether the compiler has the sanitizer and OpenMP
    command -v "$1" >/dev/null || return 1
    echo 'int main() {
#pragma omp parallel
    ;
}' >"$scratch/try.cpp"
    "$1" -fopenmp "-fsanitize=$2" "$scratch/try.cpp" -o "$scratch/try" 2>/dev/null && "$scratch/try"
}

run() { # name, compiler, flags
    for dtype in "" -DBFLOAT16; do
        echo "== $1${dtype:+, bfloat16} ($2)"
        "$2" $flags $dtype $3 "$here/driver.cpp" -o "$scratch/driver"
        "$scratch/driver"
    done
}

sanitized=""
for compiler in ${CXX:-} g++ clang++; do
    if can "$compiler" address,undefined; then
        run "AddressSanitizer and UndefinedBehaviorSanitizer" "$compiler" \
            "-fsanitize=address,undefined -fno-sanitize-recover=all"
        sanitized=yes
        break
    fi
done
[ -n "$sanitized" ] || echo "== not run: AddressSanitizer and UndefinedBehaviorSanitizer (no compiler has them with OpenMP)"

# ThreadSanitizer cannot see the synchronization in GCC's OpenMP runtime and reports races that do not exist. LLVM's runtime
# reports its synchronization through the tool Archer (Debian: clang and libomp-dev). Archer's documentation recommends
# ignore_noninstrumented_modules, but that would also ignore the kernels' memcpy calls, which load and store all vectors.
archer=$(find /usr/lib /usr/local/lib /opt -name libarcher.so 2>/dev/null | head -n 1)
echo "called_from_lib:libomp" >"$scratch/suppressions"
export OMP_TOOL_LIBRARIES="$archer" TSAN_OPTIONS="suppressions=$scratch/suppressions halt_on_error=1"
if [ -n "$archer" ] && can clang++ thread; then
    run "ThreadSanitizer" clang++ "-fsanitize=thread -fno-builtin"
else
    echo "== not run: ThreadSanitizer (needs clang++ and LLVM's OpenMP with its tool Archer: apt install clang libomp-dev)"
fi
