"""A model that takes one candidate recipe after another: factors are made once, at the highest rank, and sliced."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse import criteria
from rsparse.calibration.histogram import quantile_threshold
from rsparse.calibration.store import Calibration
from rsparse.conversion import fitted_factors
from rsparse.errors import RSparseError
from rsparse.losses import compare, dense_states, hidden_states, nll_of, window_batches
from rsparse.models.layout import sites
from rsparse.progress import progress
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import begin, densify, install_unit, state
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTLE_ROWS = 2048  # rows that solve a candidate's thresholds: ±0.3 % of sparsity


@dataclasses.dataclass(frozen=True)
class Fitness:
    """`value` is the mean over `tokens` scored; where `stopped`, a lower bound of it that already fails."""

    value: float
    tokens: int
    stopped: bool = False


class CandidateModel:
    """`model` with every unit sparse. `base` holds each unit's budget at the lowest rho that will be asked for.

    `factors_seconds`: what making the factors took.
    """

    def __init__(self, model: PreTrainedModel, base: Recipe, calibration: Calibration, windows: Tensor, objective: str) -> None:
        self.model, self.base, self.objective = model, base, objective
        self.device = next(model.parameters()).device
        self.windows = windows.to(self.device)
        self.policy = TokenPolicy("all", sink_tokens=calibration.meta.sink_tokens)
        self.dense = dense_states(model, self.windows) if objective == "kl" else None
        self.units: dict[str, _Unit] = {}
        start = time.perf_counter()
        begin(model, base)
        try:
            with torch.no_grad():
                self._install(calibration)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except BaseException:
            densify(model)
            raise
        self.factors_seconds = time.perf_counter() - start

    def close(self) -> None:
        """The dense model again."""
        densify(self.model)

    @torch.no_grad()
    def evaluate(self, recipe: Recipe, worst: float = math.inf) -> Fitness:
        """Fitness of `recipe`, whose units are the base's: mean −log p, or KL to dense, in nats a token.

        Thresholds are solved under upstream sparsity on the first rows of the same pass, so that every
        candidate reads what it is asked to. Stops where the sum so far already exceeds `worst` for the whole: losses
        are not negative, so that nothing can be lost by it.
        """
        for name, unit in self.units.items():
            unit.set(recipe.units[name])
        sums, scored = 0.0, len(self.windows) * (self.windows.shape[1] - 1)
        for start, ids in window_batches(self.model, self.windows):
            hooks = [unit.settle_next(self.policy.sink_tokens) for unit in self.units.values()] if start == 0 else []
            try:
                with state(self.model).policy.using(self.policy):
                    hidden = hidden_states(self.model, ids)
            finally:
                for hook in hooks:
                    hook.remove()
            sums += float(self._losses(ids, hidden, start).double().sum())
            if not math.isfinite(sums):
                raise RSparseError("a candidate's output is not finite; try --dtype float32 or a lower sparsity")
            if sums / scored > worst:
                return Fitness(sums / scored, scored, stopped=True)
        return Fitness(sums / scored, scored)

    def _losses(self, ids: Tensor, hidden: Tensor, start: int) -> Tensor:
        if self.dense is None:
            return nll_of(self.model, ids, hidden)
        # KL is not negative, but for rounding.
        return compare(self.model, ids, hidden, self.dense[start : start + len(ids)]).kl.clamp_min(0)

    def _install(self, calibration: Calibration) -> None:
        unit_of = {name: key for key, unit in self.base.units.items() for name in unit.linears}
        layout = sites(self.model)
        with progress(len(layout), "factors", unit="block") as bar:
            for index, block_sites in enumerate(layout):
                # Plain SVD needs none of what is gigabytes on disk.
                statistics = calibration.block(index) if self.base.fit == "dropped" else {}
                for site in block_sites:
                    for key in dict.fromkeys(unit_of[name] for name in site.linears):
                        unit = self.base.units[key]
                        weights = [site.linears[name].weight for name in unit.linears]
                        factors = fitted_factors(self.base.fit, unit, weights, statistics.get(site.name))
                        members = install_unit(self.model, key, unit, scaled=True)
                        self.units[key] = _Unit(members, factors)
                bar.update()


class _Unit:
    """A unit's modules, its factors at the highest rank, and the score scales that its recipes may ask for."""

    def __init__(self, members: list[RSparseLinear], factors: list[tuple[Tensor, Tensor] | None]) -> None:
        self.members, self.factors = members, factors
        self._scales: dict[tuple[str, bool], Tensor | None] = {}

    def set(self, recipe: UnitRecipe) -> None:
        """Slice the factors to `recipe`'s ranks."""
        self.share = recipe.kept_share
        for place, (member, factor, rank) in enumerate(zip(self.members, self.factors, recipe.linear_ranks, strict=True)):
            owner = place == 0 or len(recipe.ranks) > 1
            if factor is None or rank == 0:
                member.U = None
                if owner:
                    member.V = None
            else:
                member.U = factor[0][:, :rank].contiguous()
                if owner:
                    member.V = factor[1][:, :rank].contiguous()
        self.members[0].channel_scale = self._scale(recipe)

    def settle_next(self, sink_tokens: int) -> Any:
        """A hook that solves the threshold on the rows of the next pass."""

        def settle(module: RSparseLinear, args: tuple[Tensor, ...]) -> None:
            rows = spread_rows(args[0], sink_tokens)
            module.threshold.copy_(quantile_threshold(rows, module.channel_scale, self.share))

        return self.members[0].register_forward_pre_hook(settle)

    def _scale(self, recipe: UnitRecipe) -> Tensor | None:
        key = recipe.criterion, recipe.rank > 0
        if key not in self._scales:
            assert recipe.criterion != "residual_norm"  # it changes with every rank
            # A copy, gone at once: kept by every unit, these were the model a second time.
            weight = torch.cat([member.weight for member in self.members])
            self._scales[key] = criteria.channel_scale(recipe.criterion, weight, weight, recipe.rank)
        return self._scales[key]


def spread_rows(x: Tensor, sink_tokens: int) -> Tensor:
    """SETTLE_ROWS rows or a few more, evenly from x [batch, tokens, in] behind the sinks: x itself, 1 GB in an 8B model's
    MLP, is not copied."""
    body = x.shape[1] - sink_tokens
    count = len(x) * body
    picked = torch.arange(0, count, max(1, count // SETTLE_ROWS), device=x.device)
    return x[picked // body, picked % body + sink_tokens]
