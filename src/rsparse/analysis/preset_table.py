"""What the presets of `sparsify --quality` win and cost: the gap closed, accuracy kept, and seconds to make one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rsparse.analysis.gap_table import BASE, gap_closed
from rsparse.analysis.quality_table import head_lines, row_line, rows_of, share_of_chance

Record = dict[str, Any]
PRESETS = {"teal": "fast", "balanced": "balanced", "best": "best"}  # fast's records are those of its method


def preset_table(records: Sequence[Record], texts: Sequence[str]) -> list[str]:
    """A row for each model, level and preset: the mean gap closed over `texts` under policy `all`, the share of dense
    accuracy above chance that is kept under both policies, seconds for recipe and fit, and the GPU that they were on.

    Rows without all texts are left out; what was not measured is empty.
    """
    groups = rows_of(records)
    lines = head_lines(
        ["model", "asked", "preset", "mean closed", "above chance kept, `all`", "`decode`", "s, recipe", "s, fit", "on"]
    )
    for model, level in sorted({(model, level) for model, level, preset in groups if preset in PRESETS}):
        dense, base = groups.get((model, 0.0, "dense"), []), groups.get((model, level, BASE), [])
        for preset, name in PRESETS.items():
            mine = groups.get((model, level, preset), [])
            closed = _closed(mine, base, dense, texts)
            if closed is None:
                continue
            cells = [model.removesuffix(".gguf"), f"{level:.0%}", f"`{name}`", f"{closed:.0%}"]
            for policy in ("all", "decode"):
                share = share_of_chance(mine, dense, policy)
                cells.append("" if share is None else f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})")
            config = mine[0]["config"]
            for field in ("recipe_seconds", "fit_seconds"):
                cells.append("" if config.get(field) is None else f"{config[field]:.0f}")
            cells.append(str(mine[0]["env"]["gpu"] or mine[0]["env"]["cpu"]))
            lines.append(row_line(cells))
    return lines


def _closed(mine: Sequence[Record], base: Sequence[Record], dense: Sequence[Record], texts: Sequence[str]) -> float | None:
    """The mean gap closed; None where a text is missing, or sparse-only lost nothing."""
    found = [{r["config"]["data"]: r["metrics"]["perplexity"] for r in group if _is_text(r)} for group in (mine, base, dense)]
    if not all(text in each for each in found for text in texts):
        return None
    shares = [gap_closed(*(each[text] for each in found)) for text in texts]
    mean = sum(shares) / len(shares)
    return None if math.isnan(mean) else mean


def _is_text(record: Record) -> bool:
    return "perplexity" in record["metrics"] and record["config"]["token_policy"] == "all"
