"""WINA (arXiv 2505.19427; code microsoft/wina): the score is |x_j|·‖W[:, j]‖₂; levels by TEAL's greedy under that score.

The source's base step is 0.025 (`wina/greedyopt.py`), its text 20 samples of Alpaca; see `_greedy` for the rest.
Departures: a threshold for each linear where the source keeps the top k of each token (its greedy itself runs on
thresholds); and the rotation is left out, which turns the residual stream so that the columns of k_proj and
gate_proj become orthogonal: it changes the weights, and with them what every method here is compared on. With that
rotation the released code scores k_proj and gate_proj by column norm and the others by magnitude; here
all are scored by column norm, as the paper defines it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsparse.calibration.store import Calibration
from rsparse.methods._greedy import TOKENS, allocated_recipe
from rsparse.methods._greedy import check_options as check
from rsparse.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check", "prepare"]


def prepare(
    model: PreTrainedModel,
    sparsity: float,
    *,
    calibration: Calibration | None = None,
    allocation: str = "greedy",
    step: float = 0.025,
    tokens: int = TOKENS,
    exhaustive: bool = False,
    grouping: str = "linear",
) -> Recipe:
    """`allocation`: 'greedy' (needs a calibration) or 'uniform'. `tokens` of the calibration judge the levels."""
    return allocated_recipe(
        model, calibration, sparsity, method="wina", criterion="column_norm", allocation=allocation,
        step=step, tokens=tokens, exhaustive=exhaustive, grouping=grouping,
    )  # fmt: skip
