"""Low-rank-only: all bytes go to the factors (rho = 0); the ablation of R-Sparse without its sparse part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsparse.methods._uniform import uniform_recipe
from rsparse.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(
    model: PreTrainedModel, sparsity: float, *, grouping: str = "linear", fit: str = "svd", stacked: bool = False
) -> Recipe:
    """The same sparsity in every unit. What the ranks' rounding leaves over keeps a few channels."""
    return uniform_recipe(model, sparsity, 0.0, method="low_rank_only", grouping=grouping, fit=fit, stacked=stacked)
