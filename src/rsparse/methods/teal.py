"""TEAL (arXiv 2408.14690; code FasterDecoding/TEAL): magnitude thresholds, a level for each linear by a block-wise greedy.

All blocks get the same total; inside one, `_greedy` finds the levels: it names the algorithm's source and what
differs. Beyond that, thresholds are settled by `sparsify` under the sparse model for the recipe's budget (source: looked
up in the dense model's histogram of x, taken as symmetric around 0), and the masked rows are the token policy's.
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
    step: float = 0.05,
    tokens: int = TOKENS,
    exhaustive: bool = False,
    grouping: str = "linear",
) -> Recipe:
    """`allocation`: 'greedy' (needs a calibration) or 'uniform'. `tokens` of the calibration judge the levels."""
    return allocated_recipe(
        model, calibration, sparsity, method="teal", criterion="magnitude", allocation=allocation,
        step=step, tokens=tokens, exhaustive=exhaustive, grouping=grouping,
    )  # fmt: skip
