"""The gathering kernel in CUDA C++, compiled at first use: Triton cannot make a list in shared memory (times: docs/log.md)."""
