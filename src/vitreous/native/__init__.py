"""Kernels for CPUs that do a network's work in place of torch's operators, compiled on the user's machine."""
