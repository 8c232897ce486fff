"""Language modelling and summarisation."""

from __future__ import annotations

from rsparse.reproduce.table import BASE, PAPER_METHOD, Choice, Row, Table, Variant

LEVELS = (0.4, 0.5)
TEXT = Variant("generation", "generated", generates=True)


def rows(choice: Choice) -> list[Row]:
    return [Row(method, LEVELS, (BASE, TEXT)) for method in ("griffin", "sparse_only", "rsparse", PAPER_METHOD)]


TABLE = Table("Generation: language modelling and summarisation", rows, texts=True)
