"""What low rank could stand in for: what a linear's dropped inputs would have added to its output, and at what price.

Of a weight W [out, in] and calibration rows x, at a sparsity with one magnitude threshold, x_d being x with the kept
channels at zero: `weighted90` and `output90`, the shares of min(out, in) components that hold 90 % of the energy of W
diag(rms x_d), which takes channels as uncorrelated, and of W x_d itself. `ratio` is what decides: the energy of the
output's error with a rank that a share 1 − rho of the kept bytes buys, factors fitted to the dropped inputs, over that with
all bytes for channels; below 1 low rank pays. `svd_ratio` is the same with W's own leading components. Factors and
thresholds come from half of the rows, errors from the other half; inputs are those of the dense model, as for any fit that
works linear by linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse.analysis.pictures import kind_means
from rsparse.analysis.rank import WeightRank, rank_correlation, share90, singular_values
from rsparse.calibration import Calibration
from rsparse.lowrank import fit_to_dropped, truncated_svd
from rsparse.models.layout import sites
from rsparse.progress import progress
from rsparse.recipe import UnitRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class DroppedRank:
    """Figures of one weight; see above. The ratios are 1 where the bytes buy no rank."""

    weighted90: float
    output90: float
    ratio: float
    svd_ratio: float


def dropped_of(weight: Tensor, rows: Tensor, sparsity: float, rho: float) -> DroppedRank:
    """weight [out, in], rows [n, in] with n of 2 or more."""
    W, rows = weight.float(), rows.to(weight.device, torch.float32)
    fit, test = rows[0::2], rows[1::2]
    unit = UnitRecipe.uniform({"": W.shape[0]}, W.shape[1], sparsity, rho)
    alone = threshold(fit, sparsity)  # with all bytes for channels
    dropped, error = drop(rows, alone), _energy(drop(test, alone) @ W.T)
    ratio = svd_ratio = 1.0
    if unit.rank and error:
        level = threshold(fit, 1 - unit.kept_share)
        rest = drop(test, level)
        found = fit_to_dropped(W, drop(fit, level), unit.rank), truncated_svd(W, unit.rank)
        ratio, svd_ratio = (_energy(rest @ W.T - rest @ V @ U.T) / error for U, V in found)
    return DroppedRank(
        share90(singular_values(W * dropped.square().mean(0).sqrt())), share90(_output_values(W, dropped)), ratio, svd_ratio
    )


def threshold(rows: Tensor, share: float) -> float:
    """The magnitude up to which `share` of the rows' values lie; 0, which drops nothing, for a share of 0."""
    count = round(share * rows.numel())
    return 0.0 if count == 0 else float(rows.abs().flatten().kthvalue(count).values)


def drop(rows: Tensor, level: float) -> Tensor:
    """rows with what is kept, above `level`, at zero."""
    return torch.where(rows.abs() <= level, rows, 0)


def _energy(errors: Tensor) -> float:
    return float(errors.square().sum(dtype=torch.float64))


def _output_values(W: Tensor, dropped: Tensor) -> Tensor:
    """The min(out, in) first singular values of W x_d over the rows; there may be fewer rows than that."""
    if W.shape[0] <= W.shape[1]:
        outputs = (dropped @ W.T).double()
        return torch.linalg.eigvalsh(outputs.T @ outputs).flip(0).clamp_min(0).sqrt()
    values, vectors = torch.linalg.eigh(dropped.double().T @ dropped.double())
    return singular_values(W.double() @ (vectors * values.clamp_min(0).sqrt()))


@torch.no_grad()
def dropped_ranks(model: PreTrainedModel, calibration: Calibration, sparsity: float, rho: float) -> dict[str, DroppedRank]:
    """By linear's full name, in the model's order. Raises RSparseError for a calibration of another model."""
    calibration.check_model(model)
    found = {}
    blocks = sites(model)
    with progress(sum(len(site.linears) for block in blocks for site in block), "analyze", unit="weight") as bar:
        for index, block in enumerate(blocks):
            statistics = calibration.block(index)
            for site in block:
                for name, linear in site.linears.items():
                    found[name] = dropped_of(linear.weight, statistics[site.name].rows, sparsity, rho)
                    bar.update()
    return found


def dropped_summary(found: Mapping[str, DroppedRank], weights: Mapping[str, WeightRank]) -> dict[str, Any]:
    """Means by kind, the share of linears where low rank `pays`, and the rank correlation of `ratio` with each spectrum."""
    names = [field.name for field in fields(DroppedRank)]
    by_name = {each: {name: getattr(figures, each) for name, figures in found.items()} for each in names}
    spectra = {"rank90": {name: weights[name].rank90 for name in found}}
    spectra |= {name: by_name[name] for name in ("weighted90", "output90")}
    return {
        **{name: kind_means(values) for name, values in by_name.items()},
        "pays": kind_means({name: float(value < 1) for name, value in by_name["ratio"].items()}),
        "ratio_rank_correlation": {name: rank_correlation(values, by_name["ratio"]) for name, values in spectra.items()},
    }


def dropped_lines(told: Mapping[str, Any], sparsity: float, rho: float) -> list[str]:
    """Where low rank pays, linear by linear, and whether a spectrum tells."""
    ratios = sorted(told["ratio"].items(), key=lambda pair: pair[1])
    pays = [f"{kind} ({told['pays'][kind]:.0%} of the blocks)" for kind, _ in ratios if told["pays"][kind] > 0]
    best, worst = ratios[0], ratios[-1]
    correlations = [
        f"{name} {'cannot be told' if value is None else f'{value:+.2f}'}"
        for name, value in told["ratio_rank_correlation"].items()
    ]
    return [
        f"at {sparsity:.0%}, {1 - rho:.0%} of the kept bytes for factors fitted to what is dropped make the output's error "
        f"energy {best[1]:.2f} ({best[0]}) to {worst[1]:.2f} ({worst[0]}) times what those bytes make of it as channels; it "
        f"pays in {', '.join(pays) or 'no linear'}",
        f"rank correlation of that price with the spectra: {', '.join(correlations)} (positive: low rank, low price)",
    ]
