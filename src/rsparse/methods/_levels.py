"""Recipes with a level of its own for each unit, rank 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rsparse.errors import RSparseError
from rsparse.models.layout import unit_shapes
from rsparse.recipe import GROUPINGS, Recipe, UnitRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# No unit goes beyond: one that keeps nothing has no threshold, and near it a threshold rests on a few counts.
MAX_LEVEL = 0.95


def check_grouping(grouping: str) -> None:
    """Raises RSparseError for a grouping that does not exist."""
    if grouping not in GROUPINGS:
        raise RSparseError(f"grouping must be one of {', '.join(GROUPINGS)}, got {grouping!r}")


def recipe_of_levels(
    model: PreTrainedModel, levels: Mapping[str, float], *, method: str, criterion: str, grouping: str
) -> Recipe:
    """Each unit of `model` at its sparsity in `levels`, by unit name."""
    units = {
        name: UnitRecipe.uniform(linears, in_features, levels[name], criterion=criterion)
        for name, (linears, in_features) in unit_shapes(model, grouping).items()
    }
    return Recipe(model.config.model_type, units, method, grouping, "svd", model.config.name_or_path or "")
