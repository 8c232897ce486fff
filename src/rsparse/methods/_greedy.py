"""TEAL's block-wise greedy allocation of sparsity (arXiv 2408.14690, Algorithm 1), for any criterion.

Source: `teal/greedyopt.py` of FasterDecoding/TEAL. In each block all linears start at 0. A step considers raising
each linear by the same bytes, `step` of the first linear (q_proj: weight 1 in the source's table), so by
step · size(q) / size(linear) of its own; it runs the block on dense hidden states, takes the L2 norm over tokens of
each output channel's error, averages over channels and windows, and keeps the raise with the smallest error, until
the block's weighted mean is the target. Only the last quarter of each window counts.

Departures, all methods: text is the calibration's, 1024 tokens of it (source: 10 windows of 2048 of Alpaca); every token
but the sinks is sparse (source: the last half); a level ends at MAX_LEVEL (source: 1), and the last step is partial, so
that each block has exactly the target (source: runs to 0.9 and takes the nearest row of its log). Candidates are
evaluated lazily: errors of different linears nearly add in squares channel by channel, so a candidate's error is
predicted from its last measured increment, and only the best is run, until the best is one that was run in
this step. `exhaustive` runs all, as the source does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse.calibration.store import Calibration
from rsparse.calibration.windows import spread
from rsparse.errors import RSparseError
from rsparse.methods._levels import MAX_LEVEL, check_grouping, recipe_of_levels
from rsparse.methods._probe import BlockProbe, ProbedUnit
from rsparse.methods._uniform import uniform_recipe
from rsparse.models.layout import Site, blocks, sites
from rsparse.models.stepper import BlockStepper
from rsparse.progress import progress
from rsparse.recipe import Recipe
from rsparse.sparse_model import is_sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# SmolLM2-135M at 0.5: 1024 tokens give C4 perplexity 48.2 (KL 0.306) in 209 s on one core, 2048 give 48.4 (0.303) in 420.
TOKENS = 1024
ALLOCATIONS = ("greedy", "uniform")


def check_options(options: Mapping[str, Any]) -> None:
    """Raises RSparseError for values of the greedy's options that no model would take."""
    if (allocation := options.get("allocation", "greedy")) not in ALLOCATIONS:
        raise RSparseError(f"allocation must be one of {', '.join(ALLOCATIONS)}, got {allocation!r}")
    if not 0 < (step := options.get("step", 1)) <= 1:
        raise RSparseError(f"step must be in (0, 1], got {step}")
    if (tokens := options.get("tokens", 1)) < 1:
        raise RSparseError(f"tokens must be at least 1, got {tokens}")


def allocated_recipe(
    model: PreTrainedModel,
    calibration: Calibration | None,
    sparsity: float,
    *,
    method: str,
    criterion: str,
    allocation: str,
    step: float,
    tokens: int,
    exhaustive: bool,
    grouping: str,
) -> Recipe:
    """The recipe of `method` with levels by `allocation`: the same for every unit, or the greedy's."""
    check_options({"allocation": allocation})
    check_grouping(grouping)
    if allocation == "uniform":
        return uniform_recipe(model, sparsity, 1.0, method=method, criterion=criterion, grouping=grouping)
    levels = greedy_levels(
        model, calibration, sparsity, method=method, criterion=criterion, grouping=grouping,
        step=step, tokens=tokens, exhaustive=exhaustive,
    )  # fmt: skip
    return recipe_of_levels(model, levels, method=method, criterion=criterion, grouping=grouping)


@torch.no_grad()
def greedy_levels(
    model: PreTrainedModel,
    calibration: Calibration | None,
    sparsity: float,
    *,
    method: str,
    criterion: str,
    grouping: str,
    step: float,
    tokens: int,
    exhaustive: bool = False,
    known: Sequence[Mapping[str, float]] = (),
    keep: Callable[[dict[str, float]], None] = lambda levels: None,
) -> dict[str, float]:
    """Sparsity by unit name; each block's, weighted by the units' sizes, is `sparsity`.

    The first blocks' levels may be `known` from an earlier call; `keep` is called with each further block's. Raises
    RSparseError without a calibration of this dense model, and for options out of range.
    """
    if calibration is None:
        raise RSparseError(f"method {method} needs a calibration for its greedy allocation, or allocation 'uniform'")
    check_options({"step": step, "tokens": tokens})
    if sparsity > MAX_LEVEL:
        raise RSparseError(f"method {method}: its greedy allocation ends at sparsity {MAX_LEVEL}, got {sparsity}")
    if is_sparse(model):
        raise RSparseError(f"method {method} needs the dense model; this one is sparse")
    calibration.check_model(model)
    windows = spread(calibration.windows, tokens // calibration.meta.seq_len)
    stepper, layout = BlockStepper(model), sites(model)
    names = {module: name for name, module in model.named_modules()}
    hidden = stepper.enter(windows.to(next(model.parameters()).device))
    levels = {name: level for found in known for name, level in found.items()}
    if len(known) == len(layout):
        return levels
    with progress(len(layout), method, unit="block", done=len(known)) as bar:
        for index, (block, block_sites) in enumerate(zip(blocks(model), layout, strict=True)):
            if index < len(known):
                hidden = stepper.run(index, hidden)
                continue
            histograms = {name: found.histogram for name, found in calibration.block(index).items()}
            units = _units(block_sites, histograms, criterion, grouping)
            probe = BlockProbe(block, names[block], block_sites, units, stepper, index, hidden, calibration.meta.sink_tokens)
            with probe.attached():
                found = _allocate(probe, sparsity, step * block_sites[0].first.weight.numel(), exhaustive)
            levels |= found
            keep(found)
            hidden = probe.dense
            bar.update()
    return levels


def _units(block_sites: list[Site], histograms: dict[str, Tensor], criterion: str, grouping: str) -> list[ProbedUnit]:
    units = []
    for place, site in enumerate(block_sites):
        members = {site.name: site.linears} if grouping == "group" else {n: {n: x} for n, x in site.linears.items()}
        for name, linears in members.items():
            units.append(ProbedUnit.of(name, linears, place, criterion, histograms[site.name]))
    return units


def _allocate(probe: BlockProbe, sparsity: float, step_size: float, exhaustive: bool) -> dict[str, float]:
    """Levels by unit. `step_size`: weights that a step stops reading, the same for every unit."""
    sizes = {name: unit.size for name, unit in probe.units.items()}
    levels = dict.fromkeys(sizes, 0.0)
    target = sparsity * sum(sizes.values())
    error: Tensor | float = 0.0  # at the accepted levels: squared, [windows, hidden]
    rates: dict[str, Tensor] = {}  # by unit: increment of the squared error for each weight, when last measured
    while True:
        left = target - sum(levels[name] * size for name, size in sizes.items())
        if left <= 1e-12 * target:
            return levels
        raises = {name: min(step_size, left, (MAX_LEVEL - levels[name]) * size) for name, size in sizes.items()}
        raises = {name: raised for name, raised in raises.items() if raised > 1e-12 * sizes[name]}
        if not raises:
            return levels
        tried: dict[str, Tensor] = {}
        while True:
            guesses = {
                name: tried[name] if name in tried else error + rates[name] * raised
                for name, raised in raises.items()
                if name in rates
            }
            best = next((name for name in raises if name not in guesses or (exhaustive and name not in tried)), None)
            best = best or _smallest(guesses)
            if best in tried:
                break
            tried[best] = probe.squared_error(best, levels[best] + raises[best] / sizes[best])
            rates[best] = (tried[best] - error) / raises[best]
        levels[best] += raises[best] / sizes[best]
        probe.accept(best, levels[best])
        error = tried[best]


def _smallest(errors: dict[str, Tensor]) -> str:
    """The first name with the smallest mean over channels and windows of the L2 norm over tokens."""
    means = torch.stack([error.clamp_min(0).sqrt().mean() for error in errors.values()])
    return list(errors)[int(means.argmin())]
