"""ReLUfication without training (arXiv 2310.04564): on sparse rows the activation is ReLU, and what it makes 0 is not read.

Gate and attention are dense, up and down are read where the gate's ReLU is not 0. With `level=own` the level is what comes out.
Else each MLP drops at least the asked share: where ReLU's zeros are fewer, it is shifted, and gate x is kept where it is
above a T0 > 0; where they are more, they are dropped all the same, so that more than was asked can come out in all.
Departure: nothing is fine-tuned, where the source fine-tunes for billions of tokens.

With `phases` of 1 or more it is Case I of R-Sparse (`gated/rules/multi_phase.py`), a study of what biases can stand in for:
the activation stays, the input of down is kept at T0 and above and takes one of `phases` values below, and the asked level is
the share of all weights that meet a changed entry. All of them are read for it, so its achieved sparsity is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rsparse.errors import RSparseError
from rsparse.gated.parts import block_parts
from rsparse.gated.plan import GatedPlan
from rsparse.methods._gated import check_level, neuron_plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "ReLUfication"


def check(options: Mapping[str, Any]) -> None:
    """Raises RSparseError for values that no model would take."""
    check_level(options)
    if (phases := options.get("phases", 0)) < 0:
        raise RSparseError(f"phases must be 0 or more, got {phases}")


def prepare(model: PreTrainedModel, sparsity: float, *, level: str = "asked", phases: int = 0) -> GatedPlan:
    """`level`: 'asked', or 'own', T0 = 0 whatever is asked. Raises RSparseError below the floor: gate and attention (with
    phases, everything but down)."""
    check({"level": level, "phases": phases})
    own = level == "own" or (sparsity == 0 and not phases)
    zeros = {each.mlp: 0.0 for each in block_parts(model)} if own else None
    return neuron_plan(
        model, 0.0 if own else sparsity, method="relufication", name=NAME, rule="multi_phase" if phases else "relu",
        level="asked", thresholds=zeros, options={"phases": phases} if phases else {}, spares=("down",) if phases else None,
    )  # fmt: skip
