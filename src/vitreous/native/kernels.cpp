// Kernels for CPUs: the encoder, the convolutional stem, attention pooling and Muon.
//
// Compiled on the user's machine for its own vector unit (build.py), once for float32 activations and once, with
// -DBFLOAT16, for bfloat16. It is one translation unit, so that everything can be inlined. ops.py says what the entry
// points (KERNEL) are given; what they compute is what model/vit.py, model/stem.py and training/muon.py describe.

#include "encoder.cpp"
#include "muon.cpp"
#include "pool.cpp"
#include "stem.cpp"
