"""Dense: nothing is dropped."""

from __future__ import annotations

from torch import nn

from rsparse.methods.uniform import uniform_recipe
from rsparse.recipe import Recipe


def prepare(model: nn.Module, sparsity: float = 0.0, *, grouping: str = "linear") -> Recipe:
    """A recipe of sparsity 0, whatever is asked."""
    return uniform_recipe(model, 0.0, 1.0, method="dense", grouping=grouping)
