"""CATS (arXiv 2404.08763; code ScalingIntelligence/CATS): a threshold on |act(gate x)|, up and down sparse.

A neuron is kept where |act(gate x)| is above its MLP's threshold, which is a quantile over calibration text; gate and
attention are dense. Its paper drops 50 % of the neurons, 22 % of a Llama-2-7B's linears: `level=own`. Departures: the
threshold is solved with everything before it already sparse (source: in the dense model); nothing is fine-tuned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsparse.gated.plan import GatedPlan
from rsparse.methods._gated import check_level as check
from rsparse.methods._gated import neuron_plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check", "prepare"]


def prepare(model: PreTrainedModel, sparsity: float, *, level: str = "asked") -> GatedPlan:
    """`level`: 'asked', or 'own', half of the neurons whatever is asked. Raises RSparseError below the floor: gate and
    attention."""
    return neuron_plan(
        model, sparsity, method="cats", name="CATS", rule="gate_magnitude", level=level, thresholds=None
    )  # fmt: skip
