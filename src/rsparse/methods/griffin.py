"""GRIFFIN (arXiv 2404.01365; code hdong920/GRIFFIN): neurons chosen from the prompt, kept for the rest of the sequence.

The prompt runs dense and gives the statistic (`gated/rules/prompt.py`); what follows runs on the chosen rows of gate and up
and columns of down, attention dense. Its paper keeps 50 % of the neurons, 33 % less of a Llama-2-7B's linears: `level=own`.
The prompt is the dense context of the token policy: under `decode` the prompt or the task's context, under `last_fraction`
what comes before; under `all` there is none, and that is refused. Departures: each row of a batch has its own choice (source:
batches of one); the count of neurons is rounded (source: cut off).
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
    """`level`: 'asked', or 'own', half of the neurons whatever is asked. Raises RSparseError below the floor: attention."""
    return neuron_plan(model, sparsity, method="griffin", name="GRIFFIN", rule="prompt", level=level, thresholds={})
