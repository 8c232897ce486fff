"""How much of the perplexity that sparsity costs a method wins back, against sparse-only at the same level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsparse.analysis.quality_table import figure, head_lines, row_line, rows_of

Record = dict[str, Any]
Metrics = dict[str, Any]
BASE = "sparse_only"


def gap_closed(perplexity: float, base: float, dense: float) -> float:
    """(base − perplexity) / (base − dense): 0 for sparse-only, 1 for dense; NaN where sparse-only costs nothing."""
    return (base - perplexity) / (base - dense) if base > dense else math.nan


def gaps_closed(
    mine: Mapping[str, Metrics], base: Mapping[str, Metrics], dense: Mapping[str, Metrics], texts: Sequence[str]
) -> list[float] | None:
    """`gap_closed` on each text, of metrics by text; None where one of them lacks a text."""
    if not all(text in each for text in texts for each in (mine, dense, base)):
        return None
    return [gap_closed(mine[text]["perplexity"], base[text]["perplexity"], dense[text]["perplexity"]) for text in texts]


def mean_closed(mine: Sequence[Record], base: Sequence[Record], dense: Sequence[Record], texts: Sequence[str]) -> float | None:
    """The mean of `gaps_closed` with every token sparse; None where a text is missing, or sparse-only lost nothing."""
    own, bases, denses = (by_text([r for r in each if r["config"]["token_policy"] == "all"]) for each in (mine, base, dense))
    shares = gaps_closed(own, bases, denses, texts)
    mean = math.nan if shares is None else sum(shares) / len(shares)
    return None if math.isnan(mean) else mean


def gap_tables(records: Sequence[Record], texts: Sequence[str]) -> list[str]:
    """A table for each league: nothing fitted by gradient, then compensated. One policy; only rows that have every text.

    Each cell is the perplexity, and the share of the gap sparse-only → dense that is closed there. Rows that lose more than
    another gap are left out.
    """
    lines = []
    for compensated in (False, True):
        rows = _rows(records, texts, compensated)
        if rows:
            heads = ["model", "asked", "method", *(Path(text).stem for text in texts), "mean closed", "MB a token"]
            title = "Compensated" if compensated else "Nothing fitted by gradient"
            lines += [f"**{title}**", "", *head_lines(heads), *rows, ""]
    return lines


def _rows(records: Sequence[Record], texts: Sequence[str], compensated: bool) -> list[str]:
    groups = rows_of(records)
    found = {key: by_text(group) for key, group in groups.items()}
    lines = []
    for (model, level, preset), mine in found.items():
        dense, base = found.get((model, 0.0, "dense"), {}), found.get((model, level, BASE), {})
        shares = gaps_closed(mine, base, dense, texts)
        if shares is None:
            continue
        fitted = any(r["config"].get("compensation") for r in groups[model, level, preset])
        if preset in ("dense", BASE) or fitted != compensated:
            continue
        if sum(shares) < -len(shares):
            continue
        cells = [f"{figure(mine[text]['perplexity'])} ({_percent(share)})" for text, share in zip(texts, shares, strict=True)]
        size = sum(mine[text]["bytes_per_token"] for text in texts) / len(texts)
        tail = [_percent(sum(shares) / len(shares)), f"{size / 1e6:.1f}"]
        lines.append(
            (model, level, -sum(shares), row_line([model.removesuffix(".gguf"), f"{level:.0%}", preset, *cells, *tail]))
        )
    return [line for *_, line in sorted(lines)]


def by_text(group: Sequence[Record]) -> dict[str, Metrics]:
    """What records with a perplexity measured, by text."""
    return {r["config"]["data"]: r["metrics"] for r in group if "perplexity" in r["metrics"]}


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"
