"""Recipes that ask the same of every unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsparse import criteria
from rsparse.errors import RSparseError
from rsparse.models.layout import unit_shapes
from rsparse.recipe import GROUPINGS, Recipe, UnitRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def uniform_recipe(
    model: PreTrainedModel,
    sparsity: float,
    rho: float,
    *,
    method: str,
    criterion: str = "magnitude",
    grouping: str = "linear",
    fit: str = "svd",
    stacked: bool = False,
) -> Recipe:
    """Every unit at (sparsity, rho). `stacked`: a group's factors come from one SVD of its stacked weight.

    Raises RSparseError for sparsity outside [0, 1), rho outside [0, 1], unknown criteria and groupings.
    """
    criteria.check(criterion)
    if grouping not in GROUPINGS:
        raise RSparseError(f"grouping must be one of {', '.join(GROUPINGS)}, got {grouping!r}")
    units = {
        name: UnitRecipe.uniform(linears, in_features, sparsity, rho, criterion=criterion, stacked=stacked)
        for name, (linears, in_features) in unit_shapes(model, grouping).items()
    }
    return Recipe(model.config.model_type, units, method, grouping, fit, model.config.name_or_path or "")
