"""Histograms of |x| at every input, and how much of its mass sits in few channels or few entries.

All of it comes from a Calibration's counts, 8 bins an octave: an entry counts as the middle of its bin, one below
2^-18 as half of that. "Mass" is Σ|x| over tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsparse.analysis.pictures import COLORS, by_kind, finish, kind_means, picture
from rsparse.analysis.recipe_table import block_and_kind
from rsparse.calibration.histogram import CHANNEL_BINS, channel_edges
from rsparse.calibration.store import Calibration
from rsparse.progress import progress

CHANNEL_SHARES = (0.01, 0.1, 0.5)
# The smaller half of a normal variable's |x| holds 1 − exp(−q²/2) of its mass, q = 0.6745 its median.
NORMAL_SMALL_HALF = 0.2035
SHOWN = (5e-3, 1 - 1e-4)  # quantiles of all entries between which the histograms are drawn


@dataclass(frozen=True)
class Activations:
    """One input site. `top`: share of the mass in the first channels of largest mass, by share of channels; `small_half`: share
    of the mass in the smaller half of all entries; `median` of |x|; `histogram`: share of the entries by bin."""

    top: dict[str, float]
    small_half: float
    median: float
    histogram: list[float]


def bin_middles() -> Tensor:
    """|x| that an entry of each bin counts as, [CHANNEL_BINS] fp64."""
    edges = channel_edges().double()
    return (edges[:-1] + edges[1:]) / 2


def activations_of(counts: Tensor) -> Activations:
    """counts: [in, bins] of |x| by channel."""
    counts = counts.double().cpu()
    middles = bin_middles()
    by_channel = (counts @ middles).sort(descending=True).values
    mass = max(float(by_channel.sum()), 1e-300)
    pooled = counts.sum(0)
    total = float(pooled.sum())
    below = torch.cat([pooled.new_zeros(1), pooled.cumsum(0)])
    held = torch.cat([pooled.new_zeros(1), (pooled * middles).cumsum(0)])
    place = int(torch.searchsorted(below, total / 2, right=True)) - 1  # the bin that the median is in
    place = min(place, CHANNEL_BINS - 1)
    inside = (total / 2 - float(below[place])) / max(float(pooled[place]), 1.0)
    edges = channel_edges().double()
    return Activations(
        top={
            f"{share:g}": float(by_channel[: max(1, round(share * len(by_channel)))].sum()) / mass for share in CHANNEL_SHARES
        },
        small_half=(float(held[place]) + inside * float(pooled[place] * middles[place])) / mass,
        median=float(edges[place] + inside * (edges[place + 1] - edges[place])),
        histogram=(pooled / total).tolist(),
    )


def activations(calibration: Calibration) -> dict[str, Activations]:
    """By site, in the model's order; one block's counts at a time."""
    found = {}
    with progress(len(calibration.meta.sites), "analyze", unit="input") as bar:
        for name in calibration.meta.sites:
            found[name] = activations_of(calibration.histogram(block_and_kind(name)[0], name))
            bar.update()
    return found


def summary(found: Mapping[str, Activations]) -> dict[str, Any]:
    """Means over the blocks by kind of site, and at how many sites the smaller half holds less than a normal variable's."""
    result: dict[str, Any] = {"top_channels": {}}
    for share in CHANNEL_SHARES:
        result["top_channels"][f"{share:g}"] = kind_means({name: each.top[f"{share:g}"] for name, each in found.items()})
    result["small_half"] = kind_means({name: each.small_half for name, each in found.items()})
    heavy = sum(each.small_half < NORMAL_SMALL_HALF for each in found.values())
    return result | {"heavier_than_normal": heavy, "inputs": len(found)}


def lines(found: Mapping[str, Activations]) -> list[str]:
    """What to see, and whether half of the entries is small."""
    told = summary(found)
    half, tenth = told["small_half"], told["top_channels"]["0.1"]
    heavy, of = told["heavier_than_normal"], told["inputs"]
    verdict = "holds" if heavy > of / 2 else "does not hold"
    return [
        "the smaller half of the entries holds of Σ|x|: "
        + ", ".join(f"{kind} {value:.1%}" for kind, value in half.items())
        + "; the top tenth of the channels: "
        + ", ".join(f"{kind} {value:.0%}" for kind, value in tenth.items()),
        f"claim: few entries matter, more so than of a normal variable (whose smaller half holds {NORMAL_SMALL_HALF:.1%}): "
        f"{verdict} here (at {heavy} of {of} inputs)",
    ]


def plot(found: Mapping[str, Activations], title: str, path: Path) -> None:
    """Above: for each kind of site log2 |x| by block, the median as a line. Below: what few channels and small entries hold."""
    kinds, medians = by_kind({name: each.median for name, each in found.items()})
    count, edges = medians.shape[1], channel_edges().double()
    grids = {kind: _histograms(found, kind, count) for kind in kinds}
    low, high = _shown(np.concatenate(list(grids.values())))
    with picture(path, 2, len(kinds), (3.0 * len(kinds) + 0.6, 6.6), title, height_ratios=[1.3, 1]) as (figure, axes):
        bounds = edges[low : high + 1].log2().numpy()
        density = {kind: grid[:, low:high] / np.diff(bounds) for kind, grid in grids.items()}
        top = max(float(grid.max()) for grid in density.values())
        for axis, kind, median in zip(axes[0], kinds, medians, strict=True):
            image = axis.pcolormesh(bounds, np.arange(count + 1) - 0.5, density[kind], cmap="magma", vmin=0, vmax=top)
            axis.plot(np.log2(np.maximum(median, 1e-12)), range(count), color="white", linewidth=1)
            axis.set(xlim=(bounds[0], bounds[-1]), ylim=(count - 0.5, -0.5))
            axis.set_title(f"{kind}: |x|, white: its median", fontsize=9, loc="left")
            axis.set_xlabel("log2 |x|", fontsize=8)
            axis.tick_params(labelsize=8)
        axes[0, 0].set_ylabel("block", fontsize=8)
        figure.colorbar(image, ax=axes[0, -1], pad=0.02).set_label("share of the entries, an octave", fontsize=8)
        _lower(axes[1], found, kinds)


def _lower(axes: Any, found: Mapping[str, Activations], kinds: list[str]) -> None:
    for axis, share in zip(axes, CHANNEL_SHARES, strict=False):
        for color, kind in zip(COLORS, kinds, strict=False):
            values = [each.top[f"{share:g}"] for name, each in found.items() if name.endswith(f".{kind}")]
            axis.plot(values, color=color, label=kind, linewidth=1.2)
        axis.axhline(share, color="black", linestyle=":", linewidth=1)
        axis.set_ylim(0, 1)
        finish(axis, "block", "share of Σ|x|", f"held by the top {share:.0%} of channels")
    if len(axes) > len(CHANNEL_SHARES):
        axis = axes[len(CHANNEL_SHARES)]
        for color, kind in zip(COLORS, kinds, strict=False):
            values = [each.small_half for name, each in found.items() if name.endswith(f".{kind}")]
            axis.plot(values, color=color, label=kind, linewidth=1.2)
        axis.axhline(NORMAL_SMALL_HALF, color="black", linestyle=":", linewidth=1, label="normal")
        axis.set_ylim(0, 0.3)
        finish(axis, "block", "share of Σ|x|", "held by the smaller half of entries")
        for spare in axes[len(CHANNEL_SHARES) + 1 :]:
            spare.set_axis_off()


def _histograms(found: Mapping[str, Activations], kind: str, count: int) -> NDArray[np.float64]:
    """[blocks, bins]"""
    grid = np.zeros((count, CHANNEL_BINS))
    for name, each in found.items():
        if name.endswith(f".{kind}"):
            grid[block_and_kind(name)[0]] = each.histogram
    return grid


def _shown(grids: NDArray[np.float64]) -> tuple[int, int]:
    """The bins between which all but SHOWN's tails lie; never the first, which has no lower edge on a scale of octaves."""
    held = grids.sum(0).cumsum() / grids.sum()
    return max(1, int((held < SHOWN[0]).sum())), min(CHANNEL_BINS, int((held < SHOWN[1]).sum()) + 1)
