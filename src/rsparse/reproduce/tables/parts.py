"""Both parts of R-Sparse, and each alone."""

from __future__ import annotations

from rsparse.reproduce.table import PAPER_METHOD, Choice, Row, Table

LEVELS = (0.4, 0.5)


def rows(choice: Choice) -> list[Row]:
    return [Row(method, LEVELS) for method in (PAPER_METHOD, "rsparse", "sparse_only", "low_rank_only")]


TABLE = Table(
    "Parts: both, sparse alone, low rank alone", rows, tasks=True, texts=True, published=("parts",),
    note="R-Sparse has both parts, with a rho for each linear; so has rsparse, ours, with one, "
    "0.95, for all, factors fitted to what is dropped and scores by magnitude.",
)  # fmt: skip
