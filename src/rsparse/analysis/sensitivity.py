"""How far the output moves when one unit alone is sparse: KL(dense ‖ sparse) by unit and level, forward passes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from rsparse import criteria
from rsparse.analysis.pictures import heat_map, kind_means, picture
from rsparse.analysis.points import Points
from rsparse.analysis.walk import BlockWalk, entered_at
from rsparse.calibration.histogram import solve_threshold
from rsparse.losses import compare, hidden_states, window_batches
from rsparse.models.layout import Site, unit_shapes
from rsparse.ops import reference
from rsparse.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOOR = 1e-7  # nats: below it a KL is rounding
SPREAD = 3.0  # 90th over 10th percentile from which on units count as different


@dataclass(frozen=True)
class SensitivitySettings:
    """Each unit drops the channels of lowest score (rho = 1); the first `sink_tokens` of a window stay dense."""

    levels: tuple[float, ...]
    grouping: str = "linear"
    criterion: str = "magnitude"
    sink_tokens: int = 1


@torch.no_grad()
def sensitivity(
    model: PreTrainedModel, windows: Tensor, settings: SensitivitySettings, points: Points
) -> dict[str, dict[str, float]]:
    """KL in nats a token, by level (as text) and unit, on windows [n, seq_len]; a unit's KLs are one point of `points`.

    A unit's threshold is the quantile of its own scores on these windows: with all else dense that is exact. Passes
    start at the unit's own block.
    """
    walk = BlockWalk(model, windows)
    batches = list(window_batches(model, windows))
    dense = [hidden_states(model, ids) for _, ids in batches]
    units = unit_shapes(model, settings.grouping)
    found: dict[str, dict[str, float]] = {}
    with progress(len(units), "analyze", unit="unit") as bar:
        for index, layout in enumerate(walk.layout):
            entries, rows = list(walk.batches), _Rows(settings.sink_tokens)
            walk.run(index, rows)
            for site in layout:
                for name, linears in _units_of(site, settings.grouping).items():
                    trial = _Trial(model, index, entries, batches, dense, site, rows, linears, settings)
                    found[name] = points.get(name, trial.levels)
                    bar.update()
    return {f"{level:g}": {name: found[name][f"{level:g}"] for name in units} for level in settings.levels}


def unit_sizes(model: PreTrainedModel, grouping: str) -> dict[str, int]:
    """Weights by unit."""
    return {name: sum(outs.values()) * size for name, (outs, size) in unit_shapes(model, grouping).items()}


def _units_of(site: Site, grouping: str) -> dict[str, dict[str, nn.Linear]]:
    linears = dict(site.linears)
    return {site.name: linears} if grouping == "group" else {name: {name: linear} for name, linear in linears.items()}


class _Rows:
    """Inputs of one block's sites, without the sinks."""

    def __init__(self, sink_tokens: int) -> None:
        self.sink_tokens = sink_tokens
        self._parts: dict[str, list[Tensor]] = {}

    def __call__(self, site: Site, start: int, x: Tensor) -> None:
        self._parts.setdefault(site.name, []).append(x[:, self.sink_tokens :].flatten(0, 1))

    def of(self, site: Site) -> Tensor:
        return torch.cat(self._parts[site.name])


@dataclass(frozen=True)
class _Trial:
    """One unit, and what a pass from its block on needs."""

    model: PreTrainedModel
    index: int
    entries: Sequence[tuple[int, Tensor]]
    batches: Sequence[tuple[int, Tensor]]
    dense: Sequence[Tensor]
    site: Site
    rows: _Rows
    linears: Mapping[str, nn.Linear]
    settings: SensitivitySettings

    def levels(self) -> dict[str, float]:
        """KL by level."""
        rows = self.rows.of(self.site)
        weight = torch.cat([linear.weight for linear in self.linears.values()])
        scale = criteria.channel_scale(self.settings.criterion, weight, weight, 0)
        return {f"{level:g}": self._kl(scale, solve_threshold(rows, scale, 1 - level)) for level in self.settings.levels}

    def _kl(self, scale: Tensor | None, threshold: float) -> float:
        def masked(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            keep = reference.keep_mask(args[0], scale, threshold)
            keep[:, : self.settings.sink_tokens] = True
            return (torch.where(keep, args[0], 0), *args[1:])

        total, count = 0.0, 0
        with ExitStack() as hooks:
            for linear in self.linears.values():
                hooks.callback(linear.register_forward_pre_hook(masked).remove)
            for (_, ids), (_, entry), dense in zip(self.batches, self.entries, self.dense, strict=True):
                with entered_at(self.model, self.index, entry):
                    hidden = hidden_states(self.model, ids)
                kl = compare(self.model, ids, hidden, dense).kl
                total, count = total + float(kl.double().sum()), count + kl.numel()
        return max(total / count, 0.0)  # not negative, but for rounding


def summary(kl: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]) -> dict[str, Any]:
    """By level: percentiles over the units, the three worst, and the mean by kind, as it is and for each percent of all weights
    that the drop saves. `sizes`: weights by unit, of all units."""
    result: dict[str, Any] = {}
    percent = {name: 100 * size / sum(sizes.values()) for name, size in sizes.items()}
    for level, values in kl.items():
        low, middle, high = np.percentile(np.fromiter(values.values(), float), [10, 50, 90])
        worst = sorted(values, key=lambda name: -values[name])[:3]
        result[level] = {
            "p10": float(low),
            "median": float(middle),
            "p90": float(high),
            "spread": float(high / max(low, FLOOR)),
        }
        result[level] |= {"sum": float(sum(values.values())), "worst": worst, "by_kind": kind_means(values)}
        saved = {name: value / (float(level) * percent[name]) for name, value in values.items()}
        result[level]["by_kind_for_a_percent"] = kind_means(saved)
    return result


def lines(kl: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]) -> list[str]:
    """What to see: at the level nearest to one half."""
    found = summary(kl, sizes)
    level = min(found, key=lambda text: abs(float(text) - 0.5))
    here = found[level]
    kinds = sorted(here["by_kind_for_a_percent"].items(), key=lambda pair: -pair[1])
    worst = ", ".join(f"{name.removeprefix('model.layers.')} {kl[level][name]:.3f}" for name in here["worst"])
    verdict = (
        "units differ: the case for a recipe by unit holds here" if here["spread"] >= SPREAD else "units hardly differ here"
    )
    return [
        f"at {float(level):.0%} alone, KL to dense: median unit {here['median']:.4f} nats, worst {worst}; "
        f"for a percent of all weights saved {kinds[0][0]} costs most ({kinds[0][1]:.4f}), {kinds[-1][0]} least "
        f"({kinds[-1][1]:.4f})",
        f"{verdict} (90th over 10th percentile {here['spread']:.1f}, {SPREAD:g} asked)",
    ]


def plot(kl: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """log10 KL by block and kind, a panel a level; one scale of colours for all."""
    logs = {level: {name: float(np.log10(max(value, FLOOR))) for name, value in values.items()} for level, values in kl.items()}
    everything = [value for values in logs.values() for value in values.values()]
    kinds = len(next(iter(logs.values())))
    blocks = max(1, kinds // max(1, len(kind_means(next(iter(logs.values()))))))
    size = (max(6.5, 0.2 * blocks + 2.5), 1.0 + 2.0 * len(logs))
    with picture(path, len(logs), 1, size, title) as (figure, axes):
        for axis, (level, values) in zip(axes[:, 0], logs.items(), strict=True):
            title = f"{float(level):.0%} of one unit's channels dropped: log10 of KL to dense, nats a token"
            heat_map(figure, axis, values, title, low=min(everything), high=max(everything))
