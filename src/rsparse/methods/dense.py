"""Dense: nothing is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsparse.methods._uniform import uniform_recipe
from rsparse.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(model: PreTrainedModel, sparsity: float = 0.0, *, grouping: str = "linear") -> Recipe:
    """A recipe of sparsity 0, whatever is asked."""
    return uniform_recipe(model, 0.0, 1.0, method="dense", grouping=grouping)
