"""Each method at the level of its own paper, and R-Sparse at all of these levels."""

from __future__ import annotations

from rsparse.reproduce.table import PAPER_METHOD, Choice, Row, Table

CATS, GRIFFIN, HALF = 0.22, 0.33, 0.5  # of all linears: what half of the neurons are on Llama-2-7B; and half of all


def rows(choice: Choice) -> list[Row]:
    return [
        Row("relufication:level=own", (0.0,)),
        Row("cats", (CATS,)),
        Row("griffin", (GRIFFIN,)),
        Row("dejavu", (HALF,)),
        Row(PAPER_METHOD, (CATS, GRIFFIN, HALF)),
    ]


TABLE = Table(
    "Own level: each method at the level of its own paper", rows, tasks=True, published=("tasks",),
    note="CATS 22 %, GRIFFIN 33 %, Deja Vu and R-Sparse 50 %; ReLUfication drops what ReLU makes 0, whatever that is.",
)  # fmt: skip
