"""What each lever of `balanced` and `best` wins alone and beside the others, and what it costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rsparse.analysis.gap_table import BASE, mean_closed
from rsparse.analysis.preset_table import MEMORY, SECONDS, cost_cells
from rsparse.analysis.quality_table import head_lines, row_line, rows_of

Record = dict[str, Any]
UNFITTED = {
    "teal": "levels within each block (`fast`)",
    "joint-criterion-magnitude-lowrank-false": "levels, and bytes between kinds and blocks",
    "joint-criterion-magnitude": "levels, bytes, and low rank by kind",
    "joint-lowrank-false": "levels, bytes, and a score by kind",
    "joint-rounds0": "low rank and score by kind, no bytes moved",
    "balanced": "all: `balanced`",
}
FITTED = {
    "sparse_only-compensate-levels-false": "vectors, from one level",
    "sparse_only-compensate": "vectors and levels, from one level",
    "teal-compensate-levels-false": "vectors, from `fast`",
    "teal-compensate": "vectors and levels, from `fast`",
    "joint-compensate": "vectors and levels, from `balanced`",
    "joint-criterion-column_norm-lowrank-false-compensate-levels-false": "`best`, levels not fitted",
    "joint-criterion-column_norm-compensate": "`best`, and low rank by kind",
    "best": "all: `best`",
}
ELSEWHERE = ("teal", "balanced", "best", "teal-compensate")  # in other tables too
ABLATIONS = {*UNFITTED, *FITTED} - {*ELSEWHERE}


def is_ablation(record: Record) -> bool:
    """Whether a record is of a recipe that only the table of levers is about."""
    return record["config"]["preset"] in ABLATIONS


def lever_tables(records: Sequence[Record], texts: Sequence[str], level: float) -> list[str]:
    """A table for each league: by model the mean gap closed over `texts` at `level`, policy `all`, and over the models the
    means of that, of seconds, and of GB held.

    Rows that nothing was measured of are left out; a model without all texts of one is empty there, and so is a mean that is
    not over all models.
    """
    groups = rows_of(records)
    models = sorted({model for model, asked, preset in groups if asked == level and preset in ABLATIONS})
    heads = ["levers", "method", *(model.removesuffix(".gguf") for model in models), "mean", *SECONDS, *MEMORY]
    lines = []
    for title, rows in (("Nothing fitted by gradient", UNFITTED), ("Compensated", FITTED)):
        bodies = []
        for preset, label in rows.items():
            mine = [groups.get((model, level, preset), []) for model in models]
            others = [(groups.get((model, level, BASE), []), groups.get((model, 0.0, "dense"), [])) for model in models]
            shares = [mean_closed(own, *both, texts) for own, both in zip(mine, others, strict=True)]
            if all(share is None for share in shares):
                continue
            cells = [label, f"`{preset}`", *map(_percent, shares), _percent(_mean(shares))]
            configs = [own[0]["config"] if own else {} for own in mine]
            fields = (*SECONDS.values(), *MEMORY.values())
            cells += cost_cells({field: _mean([config.get(field) for config in configs]) for field in fields})
            bodies.append(row_line(cells))
        if bodies:
            lines += [f"**{title}, {level:.0%}**", "", *head_lines(heads), *bodies, ""]
    return lines


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
