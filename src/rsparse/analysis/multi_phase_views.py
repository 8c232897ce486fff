"""The multi-phase study as a picture and as lines."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsparse.analysis.multi_phase import DROPPED, LayerBias
from rsparse.analysis.pictures import COLORS, finish, picture

NEAR = 1.1  # times the dense perplexity that counts as near
FEW = 8  # phases
LOW_RANK = 0.25  # of the out dimensions
POOR = 30.0  # perplexities beyond so many times dense are cut off at the top

Grid = Mapping[float, Mapping[int, Mapping[str, Any]]]


def summary(grid: Grid, dense: float, layers: Sequence[LayerBias]) -> dict[str, Any]:
    """Per level the fewest phases that come near to dense, None where none do; per number of phases the median rank90."""
    fewest = {
        f"{level:g}": min((count for count, point in row.items() if point["perplexity"] <= NEAR * dense), default=None)
        for level, row in grid.items()
    }
    counts = list(layers[0].spectra)
    return {
        "dense_perplexity": dense,
        "fewest_phases_near_dense": fewest,
        "negative_share": statistics.fmean(layer.negative for layer in layers),
        "rank90": {_name(count): statistics.median(layer.rank90(count) for layer in layers) for count in counts},
        "first_component": {_name(count): statistics.median(layer.held(count, 1) for layer in layers) for count in counts},
    }


def by_layer(layers: Sequence[LayerBias]) -> list[dict[str, Any]]:
    """The record's entries, a block each."""
    return [
        {
            "t0": {f"{level:g}": value for level, value in layer.t0.items()},
            "negative_share": layer.negative,
            "rank90": {_name(count): layer.rank90(count) for count in layer.spectra},
            "held_by_8": {_name(count): layer.held(count, 8) for count in layer.spectra},
        }
        for layer in layers
    ]


def lines(grid: Grid, dense: float, layers: Sequence[LayerBias], rank_level: float) -> list[str]:
    """What to see, and whether few phases of low rank stand in for the non-sparse part."""
    told = summary(grid, dense, layers)
    fewest = told["fewest_phases_near_dense"]
    words = ", ".join(
        f"{float(level):.0%} {'more than were tried' if count is None else count}" for level, count in fewest.items()
    )
    at = fewest[f"{rank_level:g}"]
    near = "holds" if at is not None and at <= FEW else "does not hold"
    counts = [count for count in layers[0].spectra if count != DROPPED]
    least, most, dropped = (told["rank90"][_name(count)] for count in (min(counts), max(counts), DROPPED))
    low = "holds" if most <= LOW_RANK else "does not hold"
    return [
        f"dense perplexity {dense:.2f}; phases that it takes to come within {NEAR:g}x, by sparsity: {words} "
        f"({told['negative_share']:.0%} of H is below 0)",
        f"claim: few constants stand in for the non-sparse part: {near} here at {rank_level:.0%} ({FEW} phases or fewer asked)",
        f"claim: the bias terms are of low rank: {low} here (90 % of their energy takes {most:.1%} of the out dimensions with "
        f"{max(counts)} phases, {least:.1%} with {min(counts)}, {dropped:.1%} for what they replace; {LOW_RANK:.0%} asked)",
    ]


def plot(grid: Grid, dense: float, layers: Sequence[LayerBias], rank_level: float, title: str, path: Path) -> None:
    """Perplexity over phases, a line a level; rank90 by block; the terms' energy over components."""
    with picture(path, 1, 3, (13.5, 4.2), title) as (_, axes):
        left, middle, right = axes[0]
        _perplexities(left, grid, dense, layers)
        counts = list(layers[0].spectra)
        for color, count in zip(COLORS, counts, strict=False):
            style = {"color": "black", "linestyle": "--"} if count == DROPPED else {"color": color}
            label = "what they stand in for" if count == DROPPED else f"{count} phase{'s' if count > 1 else ''}"
            middle.plot([layer.rank90(count) for layer in layers], linewidth=1.2, label=label, **style)
            size = len(layers[0].spectra[count])
            held = np.mean([(s := layer.spectra[count].numpy()).cumsum() / max(s.sum(), 1e-300) for layer in layers], axis=0)
            right.plot(np.arange(1, size + 1) / size, held, linewidth=1.2, label=label, **style)
        middle.axhline(LOW_RANK, color="black", linestyle=":", linewidth=1)
        middle.set_ylim(0, None)
        finish(
            middle, "block", "share of the out dimensions", f"rank of the bias terms at {rank_level:.0%}: 90 % of their energy"
        )
        right.set_xscale("log")
        right.axhline(0.9, color="black", linestyle=":", linewidth=1)
        finish(right, "share of the components", "share of the energy", "energy held, mean over the blocks", legend=False)


def _perplexities(axis: Any, grid: Grid, dense: float, layers: Sequence[LayerBias]) -> None:
    for color, (level, row) in zip(COLORS, grid.items(), strict=False):
        counts = sorted(row)
        t0 = statistics.median(layer.t0[level] for layer in layers)
        values = [row[count]["perplexity"] for count in counts]
        axis.plot(counts, values, marker="o", markersize=3, color=color, label=f"{level:.0%} (median T0 {t0:+.3f})")
    axis.axhline(dense, color="black", linestyle=":", linewidth=1, label=f"dense {dense:.1f}")
    counts = sorted({count for row in grid.values() for count in row})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    high = max(point["perplexity"] for row in grid.values() for point in row.values())
    axis.set_ylim(dense * 0.9, min(high * 1.2, dense * POOR))
    ticks = [round(dense * factor, 1) for factor in (1, 1.25, 2, 4, 8, 16) if dense * factor < min(high * 1.2, dense * POOR)]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xticks(counts, [str(count) for count in counts])
    finish(axis, "phases", "perplexity", "down_proj's input below T0 in phases")


def _name(count: int) -> str:
    return "dropped" if count == DROPPED else str(count)
