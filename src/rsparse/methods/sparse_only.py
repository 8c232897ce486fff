"""Sparse-only: channels below the threshold are dropped, nothing stands in for them (rho = 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsparse.methods._uniform import uniform_recipe
from rsparse.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(model: PreTrainedModel, sparsity: float, *, criterion: str = "magnitude", grouping: str = "linear") -> Recipe:
    """The same sparsity in every unit."""
    return uniform_recipe(model, sparsity, 1.0, method="sparse_only", criterion=criterion, grouping=grouping)
