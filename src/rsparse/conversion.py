"""Turn a dense model into the sparse one that a recipe describes: factors, scales, and the settling pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsparse import criteria
from rsparse.calibration.histogram import lookup_threshold, solve_threshold
from rsparse.calibration.store import Calibration, SiteStatistics
from rsparse.calibration.windows import spread
from rsparse.errors import RSparseError
from rsparse.gated.model import install
from rsparse.gated.plan import GatedPlan
from rsparse.lowrank import fit_to_dropped, truncated_svd
from rsparse.models.layout import Site, sites
from rsparse.models.stepper import BlockStepper
from rsparse.ops import reference
from rsparse.progress import progress
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import (
    begin,
    densify,
    install_unit,
    recipe_state,
    set_thresholds,
    state,
    unit_members,
)
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTLE_TOKENS = 8192


def sparsify(
    model: PreTrainedModel,
    recipe: Recipe | GatedPlan,
    calibration: Calibration | None = None,
    *,
    settle_tokens: int = SETTLE_TOKENS,
    backend: str = "auto",
    seed: int = 0,
) -> PreTrainedModel:
    """Make `model` sparse in place, block by block, and return it.

    Each unit gets its low-rank factors and score scale; then, with everything before it already sparse, its
    threshold is solved for the asked budget on `settle_tokens` of the calibration's windows. settle_tokens
    = 0 looks thresholds up in the dense model's histograms instead. Without a calibration the recipe must
    hold its thresholds and fit by plain SVD. A plan for gated MLPs replaces those as a whole; its thresholds are solved in
    the same way. On any error the model is dense again.
    """
    if settle_tokens < 0:
        raise RSparseError(f"settle_tokens must be 0 (look thresholds up) or more, got {settle_tokens}")
    if isinstance(recipe, GatedPlan):
        return install(model, recipe, calibration, settle_tokens=settle_tokens, backend=backend)
    if calibration is None and needs_calibration(recipe):
        raise RSparseError(
            "this recipe needs a calibration: its thresholds are not solved, or its low-rank factors are fitted to data"
        )
    check_uncompensated(recipe)
    begin(model, recipe, backend)
    try:
        for unit in recipe.units.values():
            criteria.check(unit.criterion)
        if calibration is not None:
            calibration.check_model(model)
        with torch.no_grad():
            _Sparsifier(model, recipe, calibration, settle_tokens, seed).run()
    except BaseException:
        densify(model)
        raise
    return model


def check_uncompensated(recipe: Recipe) -> None:
    """Raises RSparseError for the recipe of a compensated model, which is half of it."""
    if any(unit.compensated for unit in recipe.units.values()):
        raise RSparseError("this recipe is a compensated model's: its vectors are in that checkpoint, not in the recipe")


def needs_calibration(recipe: Recipe) -> bool:
    """Whether thresholds are still to be solved, or factors to be fitted to data."""
    return not recipe.settled or (recipe.fit == "dropped" and any(unit.rank for unit in recipe.units.values()))


class _Sparsifier:
    def __init__(
        self, model: PreTrainedModel, recipe: Recipe, calibration: Calibration | None, settle_tokens: int, seed: int
    ) -> None:
        self.model, self.recipe, self.calibration, self.seed = model, recipe, calibration, seed
        self.device = next(model.parameters()).device
        self.windows: Tensor | None = None
        if calibration is not None and settle_tokens > 0 and not recipe.settled:
            self.windows = spread(calibration.windows, settle_tokens // calibration.meta.seq_len).to(self.device)
        self.thresholds: dict[str, float] = {}

    def run(self) -> None:
        layout = sites(self.model)
        stepper = BlockStepper(self.model)
        unit_of = {name: key for key, unit in self.recipe.units.items() for name in unit.linears}
        with progress(len(layout), "sparsify", unit="block") as bar:
            if self.calibration is not None:
                state(self.model).policy.token_policy = TokenPolicy("all", sink_tokens=self.calibration.meta.sink_tokens)
            hidden = stepper.enter(self.windows) if self.windows is not None else None
            # Blocks are called directly from here on, so the row policy keeps what the entry decided: all
            # tokens sparse but the sinks.
            for index, block_sites in enumerate(layout):
                with ExitStack() as hooks:
                    statistics = self.calibration.block(index) if self.calibration is not None else {}
                    for site in block_sites:
                        for key in dict.fromkeys(unit_of[name] for name in site.linears if name in unit_of):
                            self._install(key, site, statistics.get(site.name), hooks)
                    if hidden is not None:
                        hidden = stepper.run(index, hidden)
                bar.update()
        set_thresholds(self.model, self.thresholds)
        if self.calibration is not None and self.thresholds:
            found = recipe_state(self.model)
            found.recipe = dataclasses.replace(found.recipe, calibration=self.calibration.meta.label)

    def _install(self, key: str, site: Site, statistics: SiteStatistics | None, hooks: ExitStack) -> None:
        unit = self.recipe.units[key]
        if unit.kept_share >= 1:
            return
        weights = [site.linears[name].weight for name in unit.linears]
        factors = fitted_factors(self.recipe.fit, unit, weights, statistics, seed=self.seed)
        weight = torch.cat(weights)
        residual = torch.cat([reference.deflate(w, *uv) if uv else w for w, uv in zip(weights, factors, strict=True)])
        scale = criteria.channel_scale(unit.criterion, weight, residual, unit.rank)
        members = install_unit(self.model, key, unit, scaled=scale is not None)
        for member, uv in zip(members, factors, strict=True):
            if uv is not None:
                member.U = uv[0]
            if uv is not None and (member is members[0] or len(unit.ranks) > 1):
                member.V = uv[1]
        if scale is not None:
            members[0].channel_scale = scale
        if unit.threshold is not None and self.windows is None:
            members[0].threshold.fill_(unit.threshold)
        elif self.windows is not None:
            handle = members[0].register_forward_pre_hook(lambda module, args: self._settle(key, members, args[0]))
            hooks.callback(handle.remove)
        else:
            assert statistics is not None
            self._set(key, members, lookup_threshold(statistics.histogram.to(self.device), scale, unit.kept_share))

    def _settle(self, key: str, members: list[RSparseLinear], x: Tensor) -> None:
        assert self.calibration is not None
        rows = x[:, self.calibration.meta.sink_tokens :].flatten(0, 1)
        if not bool(rows.isfinite().all()):
            raise RSparseError(f"activations at {key} are not finite once the model is sparse; lower the sparsity")
        self._set(key, members, solve_threshold(rows, members[0].channel_scale, self.recipe.units[key].kept_share))

    def _set(self, key: str, members: list[RSparseLinear], threshold: float) -> None:
        self.thresholds[key] = threshold
        members[0].threshold.fill_(threshold)


def fitted_factors(
    fit: str, unit: UnitRecipe, weights: list[Tensor], statistics: SiteStatistics | None, *, seed: int = 0
) -> list[tuple[Tensor, Tensor] | None]:
    """(U, V) for each linear of `unit` in the weights' dtype, None where its rank is 0.

    A prefix of the columns is the factors of a lower rank. `statistics` are of the unit's input; fit `svd` needs none.
    """
    dropped = None
    if fit == "dropped" and unit.rank:
        assert statistics is not None
        dropped = _dropped(statistics.rows.to(weights[0].device), unit.kept_share)
    if len(unit.ranks) > 1:
        return [_fit(weight, rank, dropped, seed) for weight, rank in zip(weights, unit.ranks, strict=True)]
    whole = _fit(torch.cat(weights), unit.rank, dropped, seed)
    if whole is None:
        return [None] * len(weights)
    return [(part.contiguous(), whole[1]) for part in whole[0].split(list(unit.outs))]


def _fit(weight: Tensor, rank: int, dropped: Tensor | None, seed: int) -> tuple[Tensor, Tensor] | None:
    if rank == 0:
        return None
    if dropped is None:
        u, v = truncated_svd(weight, rank, seed=seed)
    else:
        u, v = fit_to_dropped(weight, dropped, rank, seed=seed)
    return _padded(u, rank, weight.dtype), _padded(v, rank, weight.dtype)


def _dropped(rows: Tensor, share: float) -> Tensor:
    """Rows with the channels of largest magnitude at zero: the mask that breaks the circle scale → fit → mask."""
    threshold = solve_threshold(rows, None, share)
    return torch.where(rows.abs() > threshold, 0, rows)


def _padded(factor: Tensor, rank: int, dtype: torch.dtype) -> Tensor:
    """Fewer calibration rows than ranks leave the rest of a factor at zero."""
    out = factor.new_zeros(factor.shape[0], rank)
    out[:, : factor.shape[1]] = factor
    return out.to(dtype).contiguous()


def relevel(model: PreTrainedModel, calibration: Calibration, levels: Mapping[str, float]) -> None:
    """Move units to other kept shares by looked-up thresholds, factors and scales as they are."""
    found = recipe_state(model)
    place = {name: (index, site.name) for index, block in enumerate(sites(model)) for site in block for name in site.linears}
    thresholds = {}
    for key, members in unit_members(model).items():
        histogram = calibration.histogram(*place[found.recipe.units[key].linears[0]]).to(members[0].weight.device)
        thresholds[key] = lookup_threshold(histogram, members[0].channel_scale, levels[key])
    set_thresholds(model, thresholds)
