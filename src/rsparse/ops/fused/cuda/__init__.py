"""Kernels in CUDA C++, compiled at first use: Triton cannot make a list in shared memory, or share it (times: docs/log.md)."""
