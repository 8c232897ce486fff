"""R-Sparse with one rho for all units (arXiv 2504.19449, §3): sparse channels, and low rank for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsparse.methods._uniform import uniform_recipe
from rsparse.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(
    model: PreTrainedModel,
    sparsity: float,
    *,
    rho: float = 0.95,
    criterion: str = "magnitude",
    grouping: str = "linear",
    fit: str = "dropped",
    stacked: bool = False,
) -> Recipe:
    """`criterion="paper", fit="svd"` is the released code. The fitted factors are closer to dense (KL) on text of the
    calibration's kind, plain SVD is a little better elsewhere: docs/results.md.
    """
    return uniform_recipe(
        model, sparsity, rho, method="rsparse", criterion=criterion, grouping=grouping, fit=fit, stacked=stacked
    )
