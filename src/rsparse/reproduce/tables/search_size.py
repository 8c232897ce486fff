"""The search's population and generations: what it finds on its own windows, and what that is worth on other text."""

from __future__ import annotations

from rsparse.reproduce.table import PAPER_METHOD, Choice, Row, Table, Variant

LEVELS = (0.5,)
GENERATIONS = 10
SEARCHES = Variant("search-size", searches=True)


def rows(choice: Choice) -> list[Row]:
    sizes = [f"population={population},generations={GENERATIONS}" for population in choice.populations]
    return [Row(f"{PAPER_METHOD}:{size}", LEVELS, (SEARCHES,)) for size in sizes]


TABLE = Table(
    "Search size: population and generations", rows, texts=True, varies=("population",), published=("search_size",),
    note="The candidates of a search run every token sparse, whatever the token policy of the cells.",
)  # fmt: skip
