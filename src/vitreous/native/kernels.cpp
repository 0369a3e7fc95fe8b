// Native CPU kernels: the encoder, the convolutional stem, attention pooling and Muon.
//
// build.py compiles this file on the user's machine for its instruction set, once for float32 activations and once,
// with -DBFLOAT16, for bfloat16. It is one translation unit, so that the compiler can inline everything. The comment
// above each entry point (KERNEL) lists its arguments, and ops.py calls it. model/vit.py, model/stem.py and
// training/muon.py define what the kernels must compute.

#include "encoder.cpp"
#include "muon.cpp"
#include "pool.cpp"
#include "stem.cpp"
