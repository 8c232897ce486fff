"""A rho for each linear by the paper's search, against one rho for all."""

from __future__ import annotations

from rsparse.reproduce.table import PAPER_METHOD, Choice, Order, Row, Table

LEVELS = (0.5,)
UNIFORM = tuple(f"rsparse:rho={rho},criterion=paper,fit=svd" for rho in ("0.9", "0.95", "0.98"))


def rows(choice: Choice) -> list[Row]:
    return [Row(method, LEVELS) for method in (*UNIFORM, "sparse_only", PAPER_METHOD)]


TABLE = Table(
    "Searched against uniform: a rho for each linear, or one for all", rows, tasks=True, texts=True,
    orders=tuple(Order(PAPER_METHOD, method) for method in (*UNIFORM, "sparse_only")),
    note="All with plain SVD and the paper's criterion, which at a rho of 1 is magnitude: sparse_only is that rho for all.",
)  # fmt: skip
