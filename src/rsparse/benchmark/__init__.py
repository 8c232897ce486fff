"""Benchmarks: quality over models, methods and levels."""
