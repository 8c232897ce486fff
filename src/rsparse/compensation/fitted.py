"""One vector of all that a fit changes, and its parts in the model's linears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsparse.compensation.settings import FitSettings
from rsparse.compensation.trainable import BACKEND
from rsparse.losses import hidden_states, window_batches
from rsparse.settle import Rough, settle, settle_roughly
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import recipe_state, unit_members

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Sparsity in learning rates: at 0.005 a step moves a level by 0.002, and 100 steps by 0.2 at most.
LEVEL_SCALE = 0.4
LEAST, MOST = 0.02, 0.95  # sparsity of a unit whose level is fitted; it starts outside of them where the recipe does
_SHIFTS = 4  # each leaves of the deviation what units that it brings to a bound do not take up


@dataclass(frozen=True)
class _Part:
    """A tensor of a linear: `scale` times a piece of the vector, which starts as `start`."""

    module: RSparseLinear
    name: str
    start: Tensor
    scale: Tensor


class FittedVector:
    """`values` [n] fp32: each part over its own scale, so that one learning rate suits all; behind them the units' levels.

    A level is a unit's sparsity, what is always read included. Its threshold follows it along the quantiles of the unit's
    scores, as the last `settle` found them; `project` holds the bytes of all units together where they were.
    """

    def __init__(self, model: PreTrainedModel, windows: Tensor, sink_tokens: int, settings: FitSettings) -> None:
        self.model, self.windows, self.sink_tokens = model, windows, sink_tokens
        self.units = unit_members(model)
        self.parts = _parts(model, self.units, windows, sink_tokens, settings)
        start = torch.cat([part.start.flatten() for part in self.parts])
        self._scales = torch.cat([part.scale.expand_as(part.start).flatten() for part in self.parts])
        recipe = recipe_state(model).recipe
        self.level_names = list(self.units) if settings.levels else []
        self.sizes = start.new_tensor([recipe.units[name].size for name in self.level_names])
        self.fixed = {name: recipe.units[name].fixed_size / recipe.units[name].size for name in self.units}
        levels = start.new_tensor([recipe.units[name].sparsity for name in self.level_names])
        fixed = start.new_tensor([self.fixed[name] for name in self.level_names])
        self.least, self.most = levels.clamp(max=LEAST), levels.clamp(min=MOST).minimum(1 - fixed)
        self.budget = (levels * self.sizes).sum()
        self.values = torch.cat([start, levels / LEVEL_SCALE]).requires_grad_()

    @property
    def levels(self) -> Tensor:
        """Sparsity of each unit of `level_names`."""
        return self.values[len(self.values) - len(self.level_names) :] * LEVEL_SCALE

    def sparsities(self) -> dict[str, float]:
        """The same by name, rounded so that what is always read has room."""
        named = zip(self.level_names, self.levels.tolist(), strict=True)
        return {name: max(0.0, min(level, 1 - self.fixed[name])) for name, level in named}

    def bind(self) -> None:
        """Put the vector into the linears, as tensors that carry its gradient."""
        self._bind_parts()
        if self.level_names:
            moved = self._settled.log_threshold + self._settled.slope * (self.levels - self._settled_levels)
            for name, threshold in zip(self.level_names, moved.exp().unbind(), strict=True):
                self.units[name][0].threshold = threshold

    @torch.no_grad()
    def settle(self, *, exactly: bool = False) -> None:
        """Solve the thresholds for the levels as they are now, under the model as it is now."""
        self._bind_parts()
        levels = self.sparsities()
        units = recipe_state(self.model).recipe.units
        shares = {name: max(0.0, 1 - levels.get(name, units[name].sparsity) - self.fixed[name]) for name in self.units}
        if exactly:
            settle(self.model, self.windows, self.sink_tokens, shares)
            for part in self.parts:  # tensors of their own again, as a file wants them
                setattr(part.module, part.name, getattr(part.module, part.name).clone())
        else:
            found = settle_roughly(self.model, self.windows, self.sink_tokens, shares)
            if self.level_names:
                rough = zip(*(found[name] for name in self.level_names), strict=True)
                self._settled = Rough(*(torch.stack(column) for column in rough))
                self._settled_levels = self.levels.clone()

    def _bind_parts(self) -> None:
        # All at once: scaled and rounded part by part, a step has 7 % more kernels.
        scaled = (self.values[: len(self._scales)] * self._scales).to(self.parts[0].module.weight.dtype)
        for part, piece in zip(self.parts, scaled.split([part.start.numel() for part in self.parts]), strict=True):
            setattr(part.module, part.name, piece.view_as(part.start))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take from the levels' gradient what would change the bytes of all units together."""
        if self.level_names and self.values.grad is not None:
            gradient = self.values.grad[len(self.values) - len(self.level_names) :]
            gradient -= self.sizes * (gradient @ self.sizes) / self.sizes.square().sum()

    @torch.no_grad()
    def project(self) -> None:
        """Move all levels by the same, within their bounds, so that the bytes of all units together are the budget."""
        if not self.level_names:
            return
        levels = self.levels.clamp(self.least, self.most)
        for _ in range(_SHIFTS):
            missing = self.budget - (levels * self.sizes).sum()
            free = torch.where(missing > 0, levels < self.most, levels > self.least)
            levels = (levels + free * missing / (free * self.sizes).sum().clamp_min(1)).clamp(self.least, self.most)
        self.values[len(self.values) - len(self.level_names) :] = levels / LEVEL_SCALE

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """Ops with gradients while the block runs."""
        ops = recipe_state(self.model).ops
        members = [member for each in self.units.values() for member in each]
        for member in members:
            member.ops = BACKEND
        try:
            yield
        finally:
            for member in members:
                member.ops = ops


def _parts(
    model: PreTrainedModel, units: Mapping[str, list[RSparseLinear]], windows: Tensor, sink_tokens: int, settings: FitSettings
) -> list[_Part]:
    scales = _output_scales(model, units, windows, sink_tokens)
    parts = []
    for members in units.values():
        for member in members:
            assert member.compensation is not None
            parts.append(_Part(member, "compensation", member.compensation.float() / scales[member], scales[member]))
            for name in ("U", "V") if settings.factors else ():
                factor = member._buffers.get(name)
                if factor is not None:
                    scale = settings.factor_rate * factor.float().square().mean().sqrt().clamp_min(1e-12)
                    parts.append(_Part(member, name, factor.float() / scale, scale))
    return parts


@torch.no_grad()
def _output_scales(
    model: PreTrainedModel, units: Mapping[str, list[RSparseLinear]], windows: Tensor, sink_tokens: int
) -> dict[RSparseLinear, Tensor]:
    """Standard deviation of each output channel over the tokens of the windows' first batch, [out] fp32.

    A few channels are 20 times the others, and one scale for all of a linear overshoots on those: SmolLM2 at 50 %, 40 steps of
    512 tokens at 0.02: held-out KL 0.452 → 0.425 so, 0.472 with the RMS of the whole output.
    """
    scales: dict[RSparseLinear, Tensor] = {}

    def note(module: RSparseLinear, args: tuple[Tensor, ...], out: Tensor) -> None:
        found = out[:, sink_tokens:].flatten(0, 1).float().std(0)
        scales[module] = found.clamp_min(1e-3 * float(found.mean()) + 1e-12)

    hooks = [member.register_forward_hook(note) for members in units.values() for member in members]
    try:
        hidden_states(model, next(window_batches(model, windows))[1])
    finally:
        for hook in hooks:
            hook.remove()
    return scales
