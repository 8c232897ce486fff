"""A short look at a fresh sparse model: is it still the model that it was?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsparse.calibration.store import Calibration
from rsparse.conversion import relevel
from rsparse.evaluation.perplexity import Perplexity, evaluate
from rsparse.sparse_model import recipe_state, set_thresholds, unit_members
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIMIT = 1.25  # perplexity over dense; SmolLM2 repeats itself from about 1.4 on, and reads well at 1.2
TOKENS = 2048
STEP = 0.1


@dataclass(frozen=True)
class Check:
    """`suggestion` is a sparsity that passes, measured with looked-up thresholds, or None where none was needed."""

    result: Perplexity
    ratio: float
    suggestion: float | None = None

    @property
    def passed(self) -> bool:
        return self.ratio <= LIMIT

    def line(self, sparsity: float) -> str:
        """What a user should know."""
        found = (
            f"perplexity {self.result.perplexity:.2f}, {self.ratio:.2f}x dense ({self.result.dense_perplexity:.2f}), "
            f"sparsity {self.result.achieved_sparsity:.3f} of {sparsity:g} asked, "
            f"on {self.result.tokens} held-out calibration tokens"
        )
        if self.passed:
            return f"check: {found}"
        lower = (
            f"about {self.suggestion:g} stays within it" if self.suggestion else "no lower level that was tried stays within it"
        )
        return f"warning: sparsity {sparsity:g} is too high for this model ({found}, limit {LIMIT:g}x); {lower}"


def quick_check(model: PreTrainedModel, calibration: Calibration) -> Check:
    """Compare `model` with its dense form on the calibration's held-out text; where it is more than 1.25x
    worse, try lower levels with thresholds from the histograms until one is not. The model is left as it was.
    """
    windows = calibration.heldout[: max(1, TOKENS // calibration.meta.seq_len)]
    policy = TokenPolicy("all", sink_tokens=calibration.meta.sink_tokens)
    result = evaluate(model, windows, policy, label="check")
    dense = result.dense_perplexity or result.perplexity
    ratio = result.perplexity / dense
    if ratio <= LIMIT:
        return Check(result, ratio)
    recipe = recipe_state(model).recipe
    level = recipe.sparsity
    try:
        while level > STEP:
            level = round(level - STEP, 2)
            part = level / recipe.sparsity
            kept = {
                name: 1 - recipe.units[name].sparsity * part - recipe.units[name].fixed_size / recipe.units[name].size
                for name in unit_members(model)
            }
            relevel(model, calibration, kept)
            lower = evaluate(model, windows, policy, against_dense=False, label=f"check {level:g}")
            if lower.perplexity <= LIMIT * dense:
                return Check(result, ratio, level)
    finally:
        set_thresholds(model, {name: recipe.units[name].threshold or 0.0 for name in unit_members(model)})
    return Check(result, ratio, 0.0)
