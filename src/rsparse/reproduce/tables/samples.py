"""How many windows of calibration text a recipe and its thresholds need."""

from __future__ import annotations

from rsparse.reproduce.table import PAPER_METHOD, Choice, Row, Table, Variant

LEVELS = (0.5,)


def rows(choice: Choice) -> list[Row]:
    found = []
    for count in choice.samples:
        variant = Variant(f"samples-{count}", f"{count} window{'s' if count > 1 else ''}", windows=count)
        # The search judges on the same windows, the paper's 16 where there are so many.
        methods = ("sparse_only", "rsparse", f"{PAPER_METHOD}:samples={min(count, 16)}")
        found += [Row(method, LEVELS, (variant,)) for method in methods]
    return found


TABLE = Table(
    "Samples: how much calibration text", rows, texts=True, varies=("samples",),
    note="Windows of the calibration text that choose the recipe and solve its thresholds.",
)  # fmt: skip
