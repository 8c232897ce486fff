"""Sparsity on weights that were rounded to 4 bits before."""

from __future__ import annotations

from rsparse.reproduce.table import BASE, PAPER_METHOD, Choice, Row, Table, Variant

LEVELS = (0.4, 0.5)
INT4 = Variant("int4", "4-bit weights", weight_bits=4)


def rows(choice: Choice) -> list[Row]:
    return [Row(method, LEVELS, (BASE, INT4)) for method in ("sparse_only", PAPER_METHOD)]


TABLE = Table(
    "Quantised: sparsity with 4-bit weights", rows, tasks=True, texts=True,
    note="Simulated: the linears of the blocks are rounded to nearest, 4 bits, groups of 128 inputs with their own least and "
    "largest value, and run in the model's dtype. Low-rank factors are of the rounded weights, and are not rounded themselves.",
)  # fmt: skip
