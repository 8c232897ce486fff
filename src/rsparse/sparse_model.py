"""Swap a model's linears for sparse ones, in place, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from rsparse.errors import RSparseError
from rsparse.meter import SparsityMeter
from rsparse.models.layout import linear_weights, unit_shapes
from rsparse.ops import dispatch
from rsparse.ops.dispatch import Backend
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.row_policy import RowPolicy
from rsparse.sparse_linear import RSparseLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class SparseState:
    """What a sparse model carries beside its modules."""

    recipe: Recipe
    ops: Backend
    policy: RowPolicy = field(default_factory=RowPolicy)

    @property
    def backend(self) -> str:
        """Name of the backend that runs, also where `auto` chose it."""
        return self.ops.name


def is_sparse(model: PreTrainedModel) -> bool:
    return isinstance(getattr(model, "rsparse", None), SparseState)


def state(model: PreTrainedModel) -> SparseState:
    """Raises RSparseError on a dense model."""
    if not is_sparse(model):
        raise RSparseError("this model is dense; sparsify it first")
    found: SparseState = model.rsparse  # type: ignore[assignment]
    return found


def check_recipe(model: PreTrainedModel, recipe: Recipe) -> None:
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


def begin(model: PreTrainedModel, recipe: Recipe, backend: str = "auto") -> SparseState:
    """Make `model` one that can take sparse units. Raises RSparseError where it cannot."""
    if is_sparse(model):
        raise RSparseError("this model is sparse already; densify it first")
    check_recipe(model, recipe)
    weight = next(model.parameters())
    ops = dispatch.resolve(backend, weight.device, weight.dtype)
    found = SparseState(recipe, ops)
    found.policy.attach(model)
    model.rsparse = found  # type: ignore[assignment]
    return found


def install_unit(model: PreTrainedModel, name: str, unit: UnitRecipe, *, scaled: bool) -> list[RSparseLinear]:
    """Replace the unit's linears by sparse ones with empty factors. The first one leads: it holds what all share."""
    found = state(model)
    members: list[RSparseLinear] = []
    for linear_name, rank in zip(unit.linears, unit.linear_ranks, strict=True):
        linear = model.get_submodule(linear_name)
        assert isinstance(linear, nn.Linear)
        leader = members[0] if members else None
        member = RSparseLinear(
            linear, name, found.policy, found.ops, rank=rank, scaled=scaled, compensated=unit.compensated,
            leader=leader, stacked=len(unit.ranks) == 1,
        )  # fmt: skip
        member.train(linear.training)
        model.set_submodule(linear_name, member)
        members.append(member)
    return members


def unit_members(model: PreTrainedModel) -> dict[str, list[RSparseLinear]]:
    """Sparse linears by unit; units that keep everything have none."""
    members: dict[str, list[RSparseLinear]] = {}
    for module in model.modules():
        if isinstance(module, RSparseLinear):
            members.setdefault(module.unit, []).append(module)
    return members


def set_thresholds(model: PreTrainedModel, thresholds: Mapping[str, float]) -> None:
    """Set thresholds in the model and in its recipe."""
    found = state(model)
    members = unit_members(model)
    for name, value in thresholds.items():
        if name in members:
            members[name][0].threshold.fill_(value)
    found.recipe = found.recipe.with_thresholds(thresholds)


def replace_units(model: PreTrainedModel, units: Mapping[str, UnitRecipe], **labels: str) -> None:
    """Other units and labels in the model's recipe; its modules are the caller's."""
    found = state(model)
    found.recipe = replace(found.recipe, units=units, **labels)  # type: ignore[arg-type]


def densify(model: PreTrainedModel) -> PreTrainedModel:
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
def measuring(model: PreTrainedModel) -> Iterator[SparsityMeter]:
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


def achieved_sparsity(model: PreTrainedModel, meter: SparsityMeter) -> tuple[float, dict[str, float]]:
    """Measured sparsity in total and by unit: 1 − (kept weights + factors + vectors) / all weights of all blocks' linears."""
    by_unit, saved = {}, 0.0
    for name, unit in state(model).recipe.units.items():
        kept = meter.kept_share(name)
        if kept is not None:
            by_unit[name] = 1 - kept - unit.fixed_size / unit.size
            saved += by_unit[name] * unit.size
    return saved / linear_weights(model), by_unit


def set_backend(model: PreTrainedModel, backend: str) -> None:
    """Choose another backend for the ops. Raises RSparseError where it cannot run here."""
    found, weight = state(model), next(model.parameters())
    found.ops = dispatch.resolve(backend, weight.device, weight.dtype)
    for members in unit_members(model).values():
        for member in members:
            member.ops = found.ops
