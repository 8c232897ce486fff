"""Swap a model's linears for sparse ones, in place, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsparse.errors import RSparseError
from rsparse.meter import SparsityMeter
from rsparse.models.layout import linear_weights, unit_shapes
from rsparse.ops import dispatch, reference
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.row_policy import RowPolicy

GATHER_ROWS = 8  # up to here rows are gathered; above, a masked GEMM reads each weight once for all of them


class RSparseLinear(nn.Linear):
    """A linear whose sparse rows read part of the weight: y = W (m⊙x) + U Vᵀ((1−m)⊙x) + b.

    weight: [out, in] as on disk; U: [out, r] and V: [in, r] in its dtype, or None; channel_scale: [in] fp32
    or None for ones; threshold: scalar fp32. `shared` names the buffers that the first member of the group
    holds for all; they are in its state dict alone.
    """

    U: Tensor | None
    V: Tensor | None
    channel_scale: Tensor | None
    threshold: Tensor

    def __init__(
        self, linear: nn.Linear, unit: str, state: SparseState, *, rank: int, scaled: bool, shared: tuple[str, ...] = ()
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        weight = linear.weight
        self.register_buffer("U", weight.new_zeros(self.out_features, rank) if rank else None)
        self.register_buffer("V", weight.new_zeros(self.in_features, rank) if rank else None, persistent="V" not in shared)
        fp32 = {"dtype": torch.float32, "device": weight.device}
        scale = torch.ones(self.in_features, **fp32) if scaled else None
        self.register_buffer("channel_scale", scale, persistent="channel_scale" not in shared)
        # The recipe holds it; a copy in the state dict could disagree.
        self.register_buffer("threshold", torch.zeros((), **fp32), persistent=False)
        self.unit = unit
        self.policy = state.policy
        self.ops = state.ops
        self.meter: SparsityMeter | None = None

    @property
    def rank(self) -> int:
        return 0 if self.U is None else self.U.shape[1]

    def forward(self, input: Tensor) -> Tensor:
        x, sparse = input, self.policy.sparse
        if sparse is False:
            return F.linear(x, self.weight, self.bias)
        packed = self.ops.pack(self.weight, self.U, self.V)
        if self.meter is None and x.shape[:-1].numel() <= GATHER_ROWS:
            rows = x.reshape(-1, self.in_features)
            row_mask = sparse.reshape(-1) if isinstance(sparse, Tensor) else None
            chosen = self.ops.select(rows, self.channel_scale, self.threshold, V=self.V, row_mask=row_mask)
            return self.ops.gather_gemv(packed, *chosen, self.bias).view(*x.shape[:-1], self.out_features)
        m = self.ops.keep_mask(x, self.channel_scale, self.threshold)
        if self.meter is not None:
            self.meter.add(self.unit, m, sparse, self.policy.valid)
        if isinstance(sparse, Tensor):
            m = m | ~sparse.unsqueeze(-1)
        return self.ops.masked_gemm(packed, x, m, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> RSparseLinear:
        """`.to(dtype)` moves score scale and threshold but never rounds them: a mask is exact or it is another."""
        exact = {name: self._buffers[name] for name in ("channel_scale", "threshold")}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            now = self._buffers[name]
            if before is not None and now is not None and now.dtype != torch.float32:
                self._buffers[name] = before.to(now.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"


@dataclass
class SparseState:
    """What a sparse model carries beside its modules."""

    recipe: Recipe
    policy: RowPolicy = field(default_factory=RowPolicy)
    backend: str = "reference"
    ops: ModuleType = reference


def is_sparse(model: nn.Module) -> bool:
    return isinstance(getattr(model, "rsparse", None), SparseState)


def state(model: nn.Module) -> SparseState:
    """Raises RSparseError on a dense model."""
    if not is_sparse(model):
        raise RSparseError("this model is dense; sparsify it first")
    found: SparseState = model.rsparse  # type: ignore[assignment]
    return found


def check_recipe(model: nn.Module, recipe: Recipe) -> None:
    """Raises RSparseError unless each unit of `recipe` fits `model`'s linears."""
    model_type = model.config.model_type
    if recipe.model_type != model_type:
        raise RSparseError(f"the recipe is for a {recipe.model_type} model, and this one is {model_type}")
    actual = {name: (out, size) for _, (outs, size) in unit_shapes(model, "linear").items() for name, out in outs.items()}
    for unit in recipe.units.values():
        for name, out in zip(unit.linears, unit.outs, strict=True):
            if name not in actual:
                raise RSparseError(f"the recipe is for another model: it names {name}, which this one lacks")
            if actual[name] != (out, unit.in_features):
                raise RSparseError(
                    f"the recipe is for another model: {name} is [{actual[name][0]}, {actual[name][1]}] "
                    f"here and [{out}, {unit.in_features}] there"
                )
    allowed = {tuple(outs) for outs, _ in unit_shapes(model, recipe.grouping).values()}
    for name, unit in recipe.units.items():
        if unit.linears not in allowed:
            raise RSparseError(f"recipe unit {name} does not match grouping {recipe.grouping!r}")


def begin(model: nn.Module, recipe: Recipe, backend: str = "auto") -> SparseState:
    """Make `model` one that can take sparse units. Raises RSparseError where it cannot."""
    if is_sparse(model):
        raise RSparseError("this model is sparse already; densify it first")
    check_recipe(model, recipe)
    weight = next(model.parameters())
    ops = dispatch.resolve(backend, weight.device, weight.dtype)
    found = SparseState(recipe, backend=backend, ops=ops)
    found.policy.attach(model)
    model.rsparse = found  # type: ignore[assignment]
    return found


def install_unit(model: nn.Module, name: str, unit: UnitRecipe, *, scaled: bool) -> list[RSparseLinear]:
    """Replace the unit's linears by sparse ones with empty factors."""
    found = state(model)
    ranks = unit.ranks * len(unit.linears) if len(unit.ranks) == 1 else unit.ranks
    members: list[RSparseLinear] = []
    for linear_name, rank in zip(unit.linears, ranks, strict=True):
        linear = model.get_submodule(linear_name)
        assert isinstance(linear, nn.Linear)
        shared = _shared(unit) if members else ()
        member = RSparseLinear(linear, name, found, rank=rank, scaled=scaled, shared=shared)
        member.train(linear.training)
        model.set_submodule(linear_name, member)
        members.append(member)
    return members


def share(members: list[RSparseLinear], unit: UnitRecipe) -> None:
    """Let a group's members hold the first one's threshold, channel_scale and, with stacked factors, V."""
    for member in members[1:]:
        for name in _shared(unit):
            member._buffers[name] = members[0]._buffers[name]


def _shared(unit: UnitRecipe) -> tuple[str, ...]:
    return ("channel_scale", "threshold", "V") if len(unit.ranks) == 1 else ("channel_scale", "threshold")


def unit_members(model: nn.Module) -> dict[str, list[RSparseLinear]]:
    """Sparse linears by unit; units that keep everything have none."""
    members: dict[str, list[RSparseLinear]] = {}
    for module in model.modules():
        if isinstance(module, RSparseLinear):
            members.setdefault(module.unit, []).append(module)
    return members


def set_thresholds(model: nn.Module, thresholds: Mapping[str, float]) -> None:
    """Set thresholds in the model and in its recipe."""
    found = state(model)
    members = unit_members(model)
    for name, value in thresholds.items():
        for member in members.get(name, []):
            member.threshold.fill_(value)
    found.recipe = found.recipe.with_thresholds(thresholds)


def densify(model: nn.Module) -> nn.Module:
    """Back to the dense model, in place, bit for bit: W was never touched."""
    found = state(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, RSparseLinear):
            linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            linear.weight, linear.bias = module.weight, module.bias
            linear.train(module.training)
            model.set_submodule(name, linear)
    found.policy.detach()
    del model.rsparse
    model.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False  # type: ignore[assignment]
    return model


@contextmanager
def measuring(model: nn.Module) -> Iterator[SparsityMeter]:
    """Count kept channels in every unit while the block runs."""
    meter = SparsityMeter()
    firsts = [members[0] for members in unit_members(model).values()] if is_sparse(model) else []
    for module in firsts:
        module.meter = meter
    try:
        yield meter
    finally:
        for module in firsts:
            module.meter = None


def achieved_sparsity(model: nn.Module, meter: SparsityMeter) -> tuple[float, dict[str, float]]:
    """Measured sparsity in total and by unit: 1 − (kept weights + factors) / all weights of all blocks' linears."""
    by_unit, saved = {}, 0.0
    for name, unit in state(model).recipe.units.items():
        kept = meter.kept_share(name)
        if kept is not None:
            by_unit[name] = 1 - kept - unit.lowrank_size / unit.size
            saved += by_unit[name] * unit.size
    return saved / linear_weights(model), by_unit


def set_backend(model: nn.Module, backend: str) -> None:
    """Choose another backend for the ops. Raises RSparseError where it cannot run here."""
    found, weight = state(model), next(model.parameters())
    found.ops, found.backend = dispatch.resolve(backend, weight.device, weight.dtype), backend
    for members in unit_members(model).values():
        for member in members:
            member.ops = found.ops
