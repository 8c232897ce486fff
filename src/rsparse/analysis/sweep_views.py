"""Sweeps as pictures and as lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsparse.analysis.pictures import COLORS, finish, picture
from rsparse.analysis.quality_table import figure
from rsparse.evaluation.check import LIMIT
from rsparse.evaluation.paired import Interval, perplexity_ratio

POOR = 20.0  # perplexities beyond so many times dense are cut off at the top
Point = Mapping[str, Any]


def rho_lines(points: Mapping[float, Point], dense: Point, sparsity: float) -> list[str]:
    """Which rho is best, and whether a mix beats both of its ends."""
    words = ", ".join(f"{rho:g} {figure(point['perplexity'])}" for rho, point in points.items())
    text = [f"perplexity at {sparsity:.0%} by rho, dense {dense['perplexity']:.2f}: {words}"]
    mixed = {rho: point for rho, point in points.items() if 0 < rho < 1}
    ends = {rho: points[rho] for rho in (0.0, 1.0) if rho in points}
    if not mixed or not ends:
        return text
    best, end = (min(group, key=lambda rho: group[rho]["perplexity"]) for group in (mixed, ends))
    ratio = perplexity_ratio(points[best]["window_nll"], points[end]["window_nll"])
    return [
        *text,
        f"claim: one rho between 0 and 1 beats both ends: {_verdict(ratio)} here (rho {best:g} over {end:g}: {_ratio(ratio)})",
    ]


def sparsity_lines(rows: Mapping[str, Mapping[float, Point]], dense: Point) -> list[str]:
    """How far each method gets, and whether R-Sparse is ahead of sparse-only at the level nearest to one half."""
    text = []
    for label, points in rows.items():
        good = [level for level, point in points.items() if point["perplexity"] <= LIMIT * dense["perplexity"]]
        words = ", ".join(f"{level:.0%} {figure(point['perplexity'])}" for level, point in points.items())
        far = f"within {LIMIT:g}x up to {max(good):.0%}" if good else f"nowhere within {LIMIT:g}x"
        text.append(f"{label}: {words} (dense {dense['perplexity']:.2f}, {far})")
    level = min(next(iter(rows.values())), key=lambda each: abs(each - 0.5))
    mine = [label for label in rows if label.startswith(("rsparse", "searched"))]
    base = next((label for label in rows if label.startswith("sparse_only")), None)
    if mine and base:
        best = min(mine, key=lambda label: rows[label][level]["perplexity"])
        ratio = perplexity_ratio(rows[best][level]["window_nll"], rows[base][level]["window_nll"])
        text.append(
            f"claim: R-Sparse beats sparse-only at {level:.0%}: {_verdict(ratio)} here ({best} over {base}: {_ratio(ratio)})"
        )
    return text


def policy_lines(points: Mapping[str, Point]) -> list[str]:
    """What each policy shows of the loss, all against dense on the tokens that it scores."""
    costs = {policy: _cost(point) for policy, point in points.items()}
    words = ", ".join(
        f"{policy} {math.exp(cost):.3f}x ({points[policy]['sparse_row_share']:.0%} of rows)" for policy, cost in costs.items()
    )
    text = [f"perplexity over dense on the same tokens, rows that ran sparse: {words}"]
    fractions = {policy: cost for policy, cost in costs.items() if policy.startswith("last_fraction")}
    if "all" in costs and fractions and costs["all"] <= 0:
        text.append("claim: a score under last_fraction hides most of the loss: cannot be told here, all shows no loss")
    elif "all" in costs and fractions:
        least = min(fractions, key=lambda policy: points[policy]["sparse_row_share"])
        part, share = fractions[least] / costs["all"], points[least]["sparse_row_share"] / points["all"]["sparse_row_share"]
        said = "holds" if part < 0.5 else "does not hold"
        text.append(
            f"claim: a score under {least} hides most of the loss: {said} here (it shows {part:.0%} of the rise of log "
            f"perplexity under all, with {share:.0%} of its sparse rows)"
        )
    return text


def plot_rho(points: Mapping[float, Point], dense: Point, title: str, path: Path) -> None:
    """Perplexity and KL over rho."""
    with picture(path, 1, 2, (10.5, 4.0), title) as (_, axes):
        left, right = axes[0]
        rhos = list(points)
        left.plot(
            rhos, [points[rho]["perplexity"] for rho in rhos], marker="o", markersize=4, color=COLORS[0], label="R-Sparse"
        )
        right.plot(rhos, [points[rho]["kl_to_dense"] for rho in rhos], marker="o", markersize=4, color=COLORS[0])
        _perplexity_axis(left, [point["perplexity"] for point in points.values()], dense["perplexity"])
        finish(left, "rho: share of the kept bytes in whole channels", "perplexity", "perplexity")
        right.set_yscale("log")
        finish(right, "rho: share of the kept bytes in whole channels", "nats a token", "KL to dense", legend=False)


def plot_sparsity(rows: Mapping[str, Mapping[float, Point]], dense: Point, title: str, path: Path) -> None:
    """Perplexity and KL over the achieved sparsity, a line a method."""
    with picture(path, 1, 2, (10.5, 4.0), title) as (_, axes):
        left, right = axes[0]
        for color, (label, points) in zip(COLORS, rows.items(), strict=False):
            achieved = [point["achieved_sparsity"] for point in points.values()]
            style = {"marker": "o", "markersize": 4, "linewidth": 1.2, "color": color, "label": label}
            left.plot(achieved, [point["perplexity"] for point in points.values()], **style)
            right.plot(achieved, [point["kl_to_dense"] for point in points.values()], **style)
        values = [point["perplexity"] for points in rows.values() for point in points.values()]
        left.axhline(LIMIT * dense["perplexity"], color="gray", linestyle="--", linewidth=1, label=f"{LIMIT:g}x dense")
        _perplexity_axis(left, values, dense["perplexity"])
        finish(left, "achieved sparsity", "perplexity", "perplexity")
        right.set_yscale("log")
        finish(right, "achieved sparsity", "nats a token", "KL to dense", legend=False)


def plot_policies(points: Mapping[str, Point], title: str, path: Path) -> None:
    """Perplexity over dense by policy, and over the share of rows that ran sparse."""
    with picture(path, 1, 2, (10.5, 3.8), title) as (_, axes):
        left, right = axes[0]
        ratios = [math.exp(_cost(point)) for point in points.values()]
        bars = left.barh(range(len(points)), [ratio - 1 for ratio in ratios], left=1, color=COLORS[0])
        left.bar_label(bars, [f"{ratio:.3f}" for ratio in ratios], fontsize=8, padding=2)
        left.set_yticks(range(len(points)), list(points), fontsize=8)
        left.invert_yaxis()
        left.axvline(1, color="black", linewidth=1)
        left.margins(x=0.15)
        finish(left, "perplexity over dense, on the tokens that the policy scores", "", "by token policy", legend=False)
        shares = [point["sparse_row_share"] for point in points.values()]
        for color, policy, share, ratio in zip(COLORS * 3, points, shares, ratios, strict=False):
            right.scatter([share], [ratio], color=color, s=24, label=policy)
        right.axhline(1, color="black", linestyle=":", linewidth=1)
        right.set_xlim(0, 1.05)
        finish(right, "share of the rows that ran sparse", "perplexity over dense", "over the rows that ran sparse")


def _perplexity_axis(axis: Any, values: Sequence[float], dense: float) -> None:
    axis.axhline(dense, color="black", linestyle=":", linewidth=1, label=f"dense {dense:.1f}")
    low, high = min([dense, *values]) * 0.95, min(max(values) * 1.1, dense * POOR)
    axis.set(yscale="log", ylim=(low, max(high, dense * 1.1)))
    ticks = [dense * factor for factor in (1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20) if dense * factor <= max(high, dense * 1.1)]
    axis.set_yticks(ticks, [f"{tick:.1f}" for tick in ticks])
    axis.minorticks_off()


def _cost(point: Point) -> float:
    return math.log(point["perplexity"] / point["dense_perplexity"])


def _verdict(ratio: Interval) -> str:
    return "holds" if ratio.high < 1 else "does not hold" if ratio.low > 1 else "cannot be told"


def _ratio(ratio: Interval) -> str:
    return f"perplexity {ratio.value:.3f}x, 95 % {ratio.low:.3f} to {ratio.high:.3f}"
