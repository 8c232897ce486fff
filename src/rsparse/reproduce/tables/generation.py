"""Language modelling and summarisation."""

from __future__ import annotations

from rsparse.reproduce.table import BASE, PAPER_METHOD, Choice, Row, Table, Variant

LEVELS = (0.4, 0.5)
WRITTEN = (0.5,)  # a cell of 64 summaries takes as long as ten of another kind
TEXT = Variant("generation", "generated", generates=True)


def rows(choice: Choice) -> list[Row]:
    methods = ("griffin", "sparse_only", "rsparse", PAPER_METHOD)
    return [Row(method, *where) for method in methods for where in ((LEVELS, (BASE,)), (WRITTEN, (TEXT,)))]


TABLE = Table(
    "Generation: language modelling and summarisation", rows, texts=True,
    note="R-Sparse has a rho for each linear by the paper's search; rsparse, ours, has one, 0.95, for all, with factors fitted "
    "to what is dropped and scores by magnitude. What is generated has no accuracy: its figures are F-measures of ROUGE-L.",
)  # fmt: skip
