"""CPU kernels in C++ that replace torch's operators in a network, compiled on the user's machine."""
