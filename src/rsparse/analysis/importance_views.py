"""Importance as a picture and as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rsparse.analysis.importance import TOLD, Source, WeightImportance, summary
from rsparse.analysis.pictures import COLORS, finish, heat_map, picture
from rsparse.analysis.recipe_table import block_and_kind

SAME = 0.8  # overlap of top sets from which on two sources count as alike
DECADES = 3.0  # of the maps' colours


def lines(found: Mapping[str, WeightImportance], sources: Sequence[Source]) -> list[str]:
    """What to see, and whether the claims hold: k_proj concentrated, up_proj spread, the same for other texts and samples."""
    told = summary(found, sources)
    corner = told["corner_mass"][TOLD]
    ordered = sorted(corner.items(), key=lambda pair: -pair[1])
    text = [
        f"the corner of a quarter of the channels × a quarter of the components (6 % of the cells) holds "
        f"{ordered[0][1]:.0%} of {ordered[0][0]}'s importance, most, and {ordered[-1][1]:.0%} of {ordered[-1][0]}'s, least"
    ]
    if {"k_proj", "up_proj"} <= set(corner):
        k, up = corner["k_proj"], corner["up_proj"]
        said = "holds" if k > up else "does not hold"
        text.append(f"claim: k_proj is concentrated, up_proj spread: {said} here ({k:.0%} against {up:.0%})")
    for what, words in (("texts", "texts"), ("samples", "numbers of samples")):
        if pairs := told[f"overlap_{what}"]:
            alone = told["overlap_weight_alone"]
            worst = min(pairs, key=lambda entry: entry["mean"])
            said = "holds" if worst["mean"] >= SAME else "does not hold"
            text.append(
                f"claim: the same cells matter for other {words}: {said} here (least overlap of top tenths "
                f"{worst['mean']:.1%}, {_pair_label(worst, sources)}; {SAME:.0%} asked; the weight alone gives {alone:.0%})"
            )
    return text


def plot(found: Mapping[str, WeightImportance], sources: Sequence[Source], block: int, title: str, path: Path) -> None:
    """One block's maps; the corner mass of every weight; and how alike the sources are."""
    here = {name: each for name, each in found.items() if block_and_kind(name)[0] == block}
    wide = max(3, -(-len(here) // 2))
    told = summary(found, sources)
    with picture(path, 1, 1, (2.9 * wide + 0.9, 9.4), title) as (figure, axes):
        axes[0, 0].remove()
        above, below = figure.subfigures(2, 1, height_ratios=[2, 1.1])
        top = above.subplots(2, wide, squeeze=False)
        for axis, (name, each) in zip(top.flat, here.items(), strict=False):
            image = _map(axis, name, each)
        for spare in list(top.flat)[len(here) :]:
            spare.set_axis_off()
        above.colorbar(image, ax=top, pad=0.01, shrink=0.7).set_label("log10 importance, over the map's largest", fontsize=8)
        left, right = below.subplots(1, 2)
        corners = {name: each.corners[0][TOLD] for name, each in found.items()}
        heat_map(below, left, corners, "mass in the 25 % corner; a flat map has 0.06", low=0)
        _overlaps(right, told, sources)


def _map(axis: Any, name: str, each: WeightImportance) -> Any:
    values = each.picture.double().numpy()
    logs = np.log10(np.maximum(values / values.max(), 10.0**-DECADES))
    image = axis.imshow(logs, aspect="auto", cmap="viridis", vmin=-DECADES, vmax=0, extent=(0, 1, 1, 0))
    axis.plot([0, 0.25, 0.25], [0.25, 0.25, 0], color="white", linewidth=1)
    kind = block_and_kind(name)[1].rpartition(".")[2]
    axis.set_title(f"{block_and_kind(name)[0]} {kind}: {each.corners[0][TOLD]:.0%} in the corner", fontsize=9, loc="left")
    axis.set_xlabel("singular components", fontsize=8)
    axis.set_ylabel("input channels", fontsize=8)
    axis.tick_params(labelsize=7)
    return image


def _overlaps(axis: Any, told: Mapping[str, Any], sources: Sequence[Source]) -> None:
    bars = [
        (entry, color) for what, color in (("texts", COLORS[0]), ("samples", COLORS[1])) for entry in told[f"overlap_{what}"]
    ]
    if not bars:
        values = told["corner_mass"][TOLD]
        axis.bar(range(len(values)), list(values.values()), color=COLORS[0])
        axis.set_xticks(range(len(values)), [kind.removesuffix("_proj") for kind in values], fontsize=8)
        finish(axis, "", "share", "mass in the 25 % corner, mean over the blocks", legend=False)
        return
    axis.barh(range(len(bars)), [entry["mean"] for entry, _ in bars], color=[color for _, color in bars])
    axis.axvline(SAME, color="black", linestyle=":", linewidth=1)
    axis.axvline(
        told["overlap_weight_alone"], color="tab:red", linestyle="--", linewidth=1, label="with the weight alone, |x| = 1"
    )
    axis.set_yticks(range(len(bars)), [_pair_label(entry, sources) for entry, _ in bars], fontsize=7)
    axis.set(xlim=(0, 1), ylim=(len(bars) + 0.8, -0.7))  # room for the legend below the bars
    finish(axis, "share of the top tenth of cells that both have", "", "overlap, mean over the weights", legend=False)
    axis.legend(fontsize=7, loc="lower left")


def _pair_label(entry: Mapping[str, Any], sources: Sequence[Source]) -> str:
    """`c4 / arxiv` for two texts, `c4: 1 / 16` for two numbers of samples."""
    a, b = (sources[place] for place in entry["pair"])
    stems = [Path(each.text).stem or each.text for each in (a, b)]
    return f"{stems[0]}: {a.samples} / {b.samples}" if a.text == b.text else " / ".join(stems)
