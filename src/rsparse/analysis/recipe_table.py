"""A recipe as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from rsparse.errors import RSparseError
from rsparse.recipe import Recipe, UnitRecipe

HEADER = f"{'unit':<24} {'in':>6} {'out':>6} {'sparsity':>17} {'rho':>14} {'rank':>11} {'threshold':>19}  criterion"


def block_and_kind(name: str) -> tuple[int, str]:
    """`model.layers.3.self_attn.q_proj` → (3, `self_attn.q_proj`)."""
    parts = name.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if index is None:
        raise RSparseError(f"recipe unit {name!r} names no block")
    return int(parts[index]), ".".join(parts[index + 1 :])


def by_kind(recipe: Recipe) -> dict[str, dict[int, UnitRecipe]]:
    """Units by kind, then by block, both in the model's order."""
    kinds: dict[str, dict[int, UnitRecipe]] = {}
    for name, unit in recipe.units.items():
        block, kind = block_and_kind(name)
        kinds.setdefault(kind, {})[block] = unit
    return {kind: dict(sorted(units.items())) for kind, units in kinds.items()}


def kind_rows(recipe: Recipe) -> Iterator[str]:
    """One line for each kind of unit, ranges over the blocks."""
    yield HEADER
    for kind, units in by_kind(recipe).items():
        yield _row(kind, list(units.values()))


def unit_rows(recipe: Recipe) -> Iterator[str]:
    """One line for each unit."""
    yield HEADER
    for kind, units in by_kind(recipe).items():
        for block, unit in units.items():
            yield _row(f"{block} {kind}", [unit])


def _row(name: str, units: list[UnitRecipe]) -> str:
    thresholds = [unit.threshold for unit in units if unit.threshold is not None]
    return (
        f"{name:<24} {units[0].in_features:>6} {units[0].out_features:>6} {_range([u.sparsity for u in units], '.3f'):>17} "
        f"{_range([u.rho for u in units], '.3f'):>14} {_range([float(u.rank) for u in units], '.0f'):>11} "
        f"{_range(thresholds, '.3g') if thresholds else 'none':>19}  {', '.join(sorted({u.criterion for u in units}))}"
    )


def _range(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
