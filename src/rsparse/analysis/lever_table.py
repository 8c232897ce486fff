"""What each lever of `balanced` and `best` wins alone and beside the others, and what it costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from rsparse.analysis.gap_table import BASE, by_text, gaps_closed
from rsparse.analysis.preset_table import MEMORY, SECONDS
from rsparse.analysis.quality_table import head_lines, row_line, rows_of

Record = dict[str, Any]
UNFITTED = {
    "teal": "levels within each block (`fast`)",
    "joint-criterion-magnitude-lowrank-false": "and bytes between kinds and blocks",
    "joint-criterion-magnitude": "and low rank by kind",
    "joint-lowrank-false": "bytes, and a score by kind",
    "joint-rounds0": "low rank and score by kind, no bytes moved",
    "balanced": "all: `balanced`",
}
FITTED = {
    "sparse_only-compensate-levels-false": "vectors, from one level",
    "sparse_only-compensate": "and levels fitted",
    "teal-compensate-levels-false": "vectors, from `fast`",
    "teal-compensate": "and levels fitted",
    "joint-compensate": "the same from `balanced`",
    "joint-criterion-column_norm-compensate-levels-false": "`best`, levels not fitted",
    "joint-criterion-column_norm-lowrank-false-compensate": "`best`, no low rank",
    "best": "all: `best`",
}
ELSEWHERE = ("teal", "balanced", "best", "teal-compensate")  # shown in other tables too


def is_ablation(record: Record) -> bool:
    """Whether a record is of a recipe that only the table of levers is about."""
    return record["config"]["preset"] in {*UNFITTED, *FITTED} - {*ELSEWHERE}


def lever_tables(records: Sequence[Record], texts: Sequence[str], level: float) -> list[str]:
    """A table for each league: by model the mean gap closed over `texts` at `level`, policy `all`; the means of seconds and
    of GB held over models. Rows that nothing was measured of are left out; a model without all texts of one is empty there.
    """
    groups = rows_of(r for r in records if r["config"]["token_policy"] == "all" and "perplexity" in r["metrics"])
    levers = {**UNFITTED, **FITTED}
    models = sorted(
        {model for model, asked, preset in groups if asked == level and preset in levers and preset not in ELSEWHERE}
    )
    lines = []
    for title, rows in (("Nothing fitted by gradient", UNFITTED), ("Compensated", FITTED)):
        found = [
            (label, preset, [groups.get((model, level, preset), []) for model in models]) for preset, label in rows.items()
        ]
        bodies = []
        for label, preset, mine in found:
            shares = [_closed(groups, model, level, each, texts) for model, each in zip(models, mine, strict=True)]
            known = [share for share in shares if share is not None]
            if not known:
                continue
            configs = [each[0]["config"] for each in mine if each]
            mean = f"{statistics.fmean(known):.1%}" if len(known) == len(models) else ""
            cells = [label, f"`{preset}`", *("" if share is None else f"{share:.1%}" for share in shares), mean]
            cells += [_mean(configs, field, 1) for field in SECONDS.values()]
            cells += [_mean(configs, field, 1e9) for field in MEMORY.values()]
            bodies.append(row_line(cells))
        if bodies:
            heads = ["levers", "method", *(model.removesuffix(".gguf") for model in models), "mean", *SECONDS, *MEMORY]
            lines += [f"**{title}, {level:.0%}**", "", *head_lines(heads), *bodies, ""]
    return lines


def _closed(
    groups: dict[tuple[str, float, str], list[Record]], model: str, level: float, mine: Sequence[Record], texts: Sequence[str]
) -> float | None:
    others = (groups.get((model, level, BASE), []), groups.get((model, 0.0, "dense"), []))
    base, dense = (by_text(each) for each in others)
    shares = gaps_closed(by_text(mine), base, dense, texts)
    mean = math.nan if shares is None else statistics.fmean(shares)
    return None if math.isnan(mean) else mean


def _mean(configs: Sequence[dict[str, Any]], field: str, unit: float) -> str:
    """Of those that have it."""
    values = [config[field] / unit for config in configs if config.get(field) is not None]
    return f"{statistics.fmean(values):.{0 if unit == 1 else 1}f}" if values else ""
