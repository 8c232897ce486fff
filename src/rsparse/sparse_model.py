"""Swap a model's linears for sparse ones, in place, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

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


class Measured(Protocol):
    """A module, or the like, that counts what its sparse rows keep while it has a meter."""

    meter: SparsityMeter | None


class SparseState(ABC):
    """What a sparse model carries beside its modules; a kind of sparse model is a class of it.

    A unit is what keeps or drops as one, and has its place in the meter.
    """

    def __init__(self) -> None:
        self.policy = RowPolicy()

    @property
    @abstractmethod
    def method(self) -> str:
        """Name of the method that made it."""

    @property
    @abstractmethod
    def backend(self) -> str:
        """Name of the backend that runs, also where `auto` chose it."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What a record's config says of it: `method`, `sparsity` (asked), `recipe_sha`, `calibration` and more."""

    @abstractmethod
    def levels(self) -> dict[str, float]:
        """Asked sparsity by kind of unit, the mean over the blocks."""

    @abstractmethod
    def measured(self, model: PreTrainedModel) -> Sequence[Measured]:
        """What a meter is given to, one for each unit that drops something."""

    @abstractmethod
    def unit_sizes(self) -> Mapping[str, int]:
        """Weights of each unit's linears."""

    @abstractmethod
    def sparsity_by_unit(self, meter: SparsityMeter) -> dict[str, float]:
        """Share of each unit's weights that its sparse rows did not read, all that is read instead counted."""

    def extra_bytes(self, model: PreTrainedModel) -> int:
        """Bytes that a sparse row reads beside weights and what `sparsity_by_unit` counts."""
        return 0

    @abstractmethod
    def put_back(self, model: PreTrainedModel) -> None:
        """Give the model its own modules again."""


class RecipeState(SparseState):
    """A model whose linears are sparse as a recipe says."""

    def __init__(self, recipe: Recipe, ops: Backend) -> None:
        super().__init__()
        self.recipe, self.ops = recipe, ops

    @property
    def method(self) -> str:
        return self.recipe.method

    @property
    def backend(self) -> str:
        return self.ops.name

    def config(self) -> dict[str, Any]:
        recipe = self.recipe
        units = list(recipe.units.values())
        read = max(1.0, sum((1 - unit.sparsity) * unit.size for unit in units))
        return {
            "method": recipe.method,
            "sparsity": round(recipe.sparsity, 6),
            "rho": sorted({unit.rho for unit in units}),
            "criterion": sorted({unit.criterion for unit in units}),
            "kinds": recipe.kinds(),
            "grouping": recipe.grouping,
            "fit": recipe.fit,
            "rank_share": round(sum(unit.lowrank_size for unit in units) / read, 6),
            "recipe_sha": recipe.sha(),
            "calibration": recipe.calibration,
            "compensation": recipe.compensation,
        }

    def levels(self) -> dict[str, float]:
        """By `q_proj` and the like, or `gate_up` in groups."""
        kinds = self.recipe.by_kind()
        return {kind: round(sum(unit.sparsity for unit in units) / len(units), 4) for kind, units in kinds.items()}

    def measured(self, model: PreTrainedModel) -> list[RSparseLinear]:
        return [members[0] for members in unit_members(model).values()]

    def unit_sizes(self) -> dict[str, int]:
        return {name: unit.size for name, unit in self.recipe.units.items()}

    def sparsity_by_unit(self, meter: SparsityMeter) -> dict[str, float]:
        units = self.recipe.units
        kept = {name: meter.kept_share(name) for name in units}
        return {
            name: 1 - share - units[name].fixed_size / units[name].size for name, share in kept.items() if share is not None
        }

    def extra_bytes(self, model: PreTrainedModel) -> int:
        """The score scales."""
        scales = [members[0].channel_scale for members in unit_members(model).values()]
        return sum(scale.nbytes for scale in scales if scale is not None)

    def put_back(self, model: PreTrainedModel) -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, RSparseLinear):
                linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
                linear.weight, linear.bias = module.weight, module.bias
                linear.train(module.training)
                model.set_submodule(name, linear)


def is_sparse(model: PreTrainedModel) -> bool:
    return isinstance(getattr(model, "rsparse", None), SparseState)


def state(model: PreTrainedModel) -> SparseState:
    """Raises RSparseError on a dense model."""
    if not is_sparse(model):
        raise RSparseError("this model is dense; sparsify it first")
    found: SparseState = model.rsparse  # type: ignore[assignment]
    return found


def recipe_state(model: PreTrainedModel) -> RecipeState:
    """Raises RSparseError on a dense model, and on one that is sparse in another way than a recipe's."""
    found = state(model)
    if not isinstance(found, RecipeState):
        raise RSparseError(
            f"this model was made by {found.method}, which is no recipe for its linears: it can be evaluated and can "
            "generate text, but neither saved, compensated nor tuned"
        )
    return found


def claim(model: PreTrainedModel, found: SparseState) -> None:
    """Make `model` a sparse one with that state; its modules are the caller's. Raises RSparseError where it is sparse."""
    if is_sparse(model):
        raise RSparseError("this model is sparse already; densify it first")
    found.policy.attach(model)
    model.rsparse = found  # type: ignore[assignment]


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


def begin(model: PreTrainedModel, recipe: Recipe, backend: str = "auto") -> RecipeState:
    """Make `model` one that can take sparse units. Raises RSparseError where it cannot."""
    if is_sparse(model):
        raise RSparseError("this model is sparse already; densify it first")
    check_recipe(model, recipe)
    weight = next(model.parameters())
    found = RecipeState(recipe, dispatch.resolve(backend, weight.device, weight.dtype))
    if found.ops.prepare is not None:
        names = [name for unit in recipe.units.values() if unit.kept_share < 1 for name in unit.linears]
        found.ops.prepare(model.get_submodule(name) for name in names)
    claim(model, found)
    return found


def install_unit(model: PreTrainedModel, name: str, unit: UnitRecipe, *, scaled: bool) -> list[RSparseLinear]:
    """Replace the unit's linears by sparse ones with empty factors. The first one leads: it holds what all share."""
    found = recipe_state(model)
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
    found = recipe_state(model)
    members = unit_members(model)
    for name, value in thresholds.items():
        if name in members:
            members[name][0].threshold.fill_(value)
    found.recipe = found.recipe.with_thresholds(thresholds)


def replace_units(model: PreTrainedModel, units: Mapping[str, UnitRecipe], **labels: str) -> None:
    """Other units and labels in the model's recipe; its modules are the caller's."""
    found = recipe_state(model)
    found.recipe = replace(found.recipe, units=units, **labels)  # type: ignore[arg-type]


def densify(model: PreTrainedModel) -> PreTrainedModel:
    """Back to the dense model, in place, bit for bit: W was never touched."""
    found = state(model)
    found.put_back(model)
    found.policy.detach()
    del model.rsparse
    model.config.__dict__.pop("quantization_config", None)
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False  # type: ignore[assignment]
    return model


@contextmanager
def measuring(model: PreTrainedModel) -> Iterator[SparsityMeter]:
    """Count what every unit keeps while the block runs."""
    meter = SparsityMeter()
    firsts = state(model).measured(model) if is_sparse(model) else []
    for module in firsts:
        module.meter = meter
    try:
        yield meter
    finally:
        for module in firsts:
            module.meter = None


def achieved_sparsity(model: PreTrainedModel, meter: SparsityMeter) -> tuple[float, dict[str, float]]:
    """Measured sparsity in total and by unit: 1 − (kept weights + factors + vectors) / all weights of all blocks' linears."""
    found = state(model)
    by_unit, sizes = found.sparsity_by_unit(meter), found.unit_sizes()
    return sum(share * sizes[name] for name, share in by_unit.items()) / linear_weights(model), by_unit


def set_backend(model: PreTrainedModel, backend: str) -> None:
    """Choose another backend for the ops. Raises RSparseError where it cannot run here."""
    found, weight = recipe_state(model), next(model.parameters())
    found.ops = dispatch.resolve(backend, weight.device, weight.dtype)
    for members in unit_members(model).values():
        for member in members:
            member.ops = found.ops
        if found.ops.prepare is not None:
            found.ops.prepare(members)
