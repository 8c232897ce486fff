"""The intrinsic rank of each weight: how few singular components hold how much of it.

The paper explains by it why k_proj's importance is concentrated and up_proj's spread, but defines no figure. Ours, of the
singular values σ of W [out, in] with n = min(out, in): `rank90`, the share of n components that holds 90 % of Σσ²;
`effective_rank`, exp of the entropy of σ/Σσ, over n (Roy and Vetterli 2007); `stable_rank`, Σσ²/σ₁²; and
`energy_at_bytes`, the share of Σσ² in the rank whose factors take a share of W's bytes: what a recipe can buy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsparse.analysis.pictures import COLORS, finish, heat_map, kind_means, picture, rho_limits
from rsparse.analysis.recipe_table import block_and_kind
from rsparse.models.layout import sites
from rsparse.progress import progress
from rsparse.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTE_SHARES = (0.05, 0.1, 0.25, 0.5)
EXPLAINS = -0.5  # rank correlation from which on, downwards, low rank counts as the reason for concentrated importance
CURVE = tuple(round(0.02 * step, 2) for step in range(51))  # shares of n at which the energy is kept


@dataclass(frozen=True)
class WeightRank:
    """Figures of one weight; see above. `curve`: the share of Σσ² in the first components, at CURVE."""

    rank90: float
    effective_rank: float
    stable_rank: float
    energy_at_bytes: dict[str, float]
    curve: list[float]


def singular_values(weight: Tensor) -> Tensor:
    """σ of weight [out, in], descending, in fp64: by its smaller Gram matrix, ten times as fast as an SVD."""
    wide = weight.double()
    wide = wide if wide.shape[0] <= wide.shape[1] else wide.T
    return torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp_min(0).sqrt()


def share90(sigma: Tensor) -> float:
    """The share of the components, σ descending, that holds 90 % of Σσ²; 0 where there is nothing to hold."""
    energy = sigma.double().square()
    total = float(energy.sum())
    if total == 0:
        return 0.0
    return (int((energy.cumsum(0) / total < 0.9 - 1e-12).sum()) + 1) / len(sigma)


def rank_of(weight: Tensor) -> WeightRank:
    """The figures of weight [out, in]. A weight of zeros has none of its energy anywhere: all figures 0."""
    sigma = singular_values(weight).cpu()
    energy = sigma.square()
    total = float(energy.sum())
    if total == 0:
        return WeightRank(0.0, 0.0, 0.0, {f"{share:g}": 0.0 for share in BYTE_SHARES}, [0.0] * len(CURVE))
    held = torch.cat([energy.new_zeros(1), energy.cumsum(0) / total])  # held[r]: in the first r components
    n = len(sigma)
    p = sigma / sigma.sum()
    entropy = -float(torch.special.xlogy(p, p).sum())
    out, in_features = weight.shape
    ranks = {share: int(share * out * in_features / (out + in_features) + 1e-9) for share in BYTE_SHARES}
    return WeightRank(
        rank90=share90(sigma),
        effective_rank=float(np.exp(entropy)) / n,
        stable_rank=total / float(energy[0]),
        energy_at_bytes={f"{share:g}": float(held[min(rank, n)]) for share, rank in ranks.items()},
        curve=[float(held[round(share * n)]) for share in CURVE],
    )


@torch.no_grad()
def ranks(model: PreTrainedModel) -> dict[str, WeightRank]:
    """By linear's full name, in the model's order."""
    linears = {name: linear for block in sites(model) for site in block for name, linear in site.linears.items()}
    found = {}
    with progress(len(linears), "analyze", unit="weight") as bar:
        for name, linear in linears.items():
            found[name] = rank_of(linear.weight)
            bar.update()
    return found


def rho_of(recipe: Recipe) -> dict[str, float]:
    """rho by linear: that of its unit."""
    return {name: unit.rho for unit in recipe.units.values() for name in unit.linears}


def rank_correlation(a: Mapping[str, float], b: Mapping[str, float]) -> float | None:
    """Spearman's over the names of both; None where one of them does not vary."""
    names = [name for name in a if name in b]
    x, y = (_places(np.array([values[name] for name in names])) for values in (a, b))
    if len(names) < 2 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _places(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def summary(
    found: Mapping[str, WeightRank], rho: Mapping[str, float] | None, corners: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Means by kind, in how many blocks k_proj is below up_proj, and the correlations with a recipe's rho and with the mass of
    the importance in its corner."""
    rank90 = {name: each.rank90 for name, each in found.items()}
    effective = {name: each.effective_rank for name, each in found.items()}
    tenth = {name: each.energy_at_bytes["0.1"] for name, each in found.items()}
    blocks: dict[int, dict[str, float]] = {}
    for name, value in rank90.items():
        block, kind = block_and_kind(name)
        blocks.setdefault(block, {})[kind.rpartition(".")[2]] = value
    both = [row for row in blocks.values() if {"k_proj", "up_proj"} <= set(row)]
    result: dict[str, Any] = {"rank90": kind_means(rank90), "effective_rank": kind_means(effective)}
    result |= {"energy_at_a_tenth_of_bytes": kind_means(tenth)}
    result |= {"blocks_with_k_below_up": sum(row["k_proj"] < row["up_proj"] for row in both), "blocks": len(both)}
    for name, values in (("rho", rho), ("importance", corners)):
        result |= {} if values is None else {f"{name}_rank_correlation": rank_correlation(values, rank90)}
    return result


def lines(
    found: Mapping[str, WeightRank], rho: Mapping[str, float] | None, corners: Mapping[str, float] | None = None
) -> list[str]:
    """What to see, whether k_proj is of lower rank than up_proj, and whether that goes with concentrated importance."""
    told = summary(found, rho, corners)
    by_rank = sorted(told["rank90"].items(), key=lambda pair: pair[1])
    low, high = by_rank[0], by_rank[-1]
    tenth = told["energy_at_a_tenth_of_bytes"]
    k, up, below, of = (
        told["rank90"].get("k_proj"),
        told["rank90"].get("up_proj"),
        told["blocks_with_k_below_up"],
        told["blocks"],
    )
    text = [
        f"90 % of a weight's energy takes from {low[1]:.0%} of its components ({low[0]}) to {high[1]:.0%} ({high[0]}), mean "
        f"over the blocks; a tenth of the bytes buys {min(tenth.values()):.0%} to {max(tenth.values()):.0%} of the energy"
    ]
    if k is not None and up is not None:
        verdict = "holds" if below > of / 2 and k < up else "does not hold"
        text.append(
            f"claim: k_proj's rank is lower than up_proj's: {verdict} here ({k:.0%} against {up:.0%}, {below} of {of} blocks)"
        )
    if rho is not None:
        value = told["rho_rank_correlation"]
        said = "none can be told: one of them does not vary" if value is None else f"{value:+.2f} (positive: low rank, low rho)"
        text.append(f"rank correlation of the recipe's rho with it: {said}")
    if corners is not None:
        text.append(
            f"claim: importance is concentrated where the rank is low: {_explains(told['importance_rank_correlation'])}"
        )
    return text


def _explains(value: float | None) -> str:
    if value is None:
        return "cannot be told here: one of them does not vary"
    said = "holds" if value <= EXPLAINS else "does not hold"
    return f"{said} here (rank correlation of the mass in the corner with it {value:+.2f}; {EXPLAINS:g} or below asked)"


def plot(
    found: Mapping[str, WeightRank],
    rho: Mapping[str, float] | None,
    title: str,
    path: Path,
    corners: Mapping[str, float] | None = None,
) -> None:
    """rank90 by block and kind; the spectra's energy by kind; with a recipe its rho, and rho over rank90; with `corners` the
    same of them."""
    # what stands beside: values, the heading of their map, their axis, the ends of its colours
    beside: list[tuple[Mapping[str, float], str, str, tuple[float, float | None]]] = []
    if rho is not None:
        beside.append((rho, "the recipe's rho", "rho", rho_limits(np.array(list(rho.values())))))
    if corners is not None:
        beside.append((corners, "importance in the 25 % corner", "mass", (0.0, None)))
    rows = 1 + len(beside)
    kinds = list(kind_means({name: each.rank90 for name, each in found.items()}))
    with picture(path, rows, 2, (11.5, 3.6 * rows), title, width_ratios=[1.5, 1]) as (figure, axes):
        rank90 = {name: each.rank90 for name, each in found.items()}
        heat_map(figure, axes[0, 0], rank90, "share of the components that hold 90 % of the energy", low=0, high=1)
        for color, kind in zip(COLORS, kinds, strict=False):
            curves = [each.curve for name, each in found.items() if name.endswith(f".{kind}")]
            axes[0, 1].plot(CURVE, np.mean(curves, axis=0), color=color, label=kind, linewidth=1.2)
        axes[0, 1].axhline(0.9, color="black", linestyle=":", linewidth=1)
        finish(axes[0, 1], "share of the components", "share of the energy", "energy held, mean over the blocks")
        for (values, head, label, (low, high)), (left, right) in zip(beside, axes[1:], strict=True):
            heat_map(figure, left, values, head, low=low, high=high)
            for color, kind in zip(COLORS, kinds, strict=False):
                names = [name for name in rank90 if name.endswith(f".{kind}") and name in values]
                style = {"s": 12, "color": color, "label": kind, "alpha": 0.7}
                right.scatter([rank90[name] for name in names], [values[name] for name in names], **style)
            finish(right, "share of the components for 90 %", label, f"{label} over rank, a dot a weight")
