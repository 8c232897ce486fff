"""R-Sparse against Deja Vu with a predictor that is always right."""

from __future__ import annotations

from rsparse.reproduce.table import PAPER_METHOD, Choice, Row, Table

LEVELS = (0.4, 0.5)


def rows(choice: Choice) -> list[Row]:
    return [Row(method, LEVELS) for method in ("dejavu", "sparse_only", PAPER_METHOD)]


TABLE = Table(
    "Oracle: R-Sparse against Deja Vu with a perfect predictor", rows, tasks=True, published=("tasks",),
    note="The oracle reads all weights to know which ones it needs, and its predictor's bytes are not counted: a bound.",
)  # fmt: skip
