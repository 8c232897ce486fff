"""Deja Vu with an oracle (arXiv 2310.17157): the neurons and heads that a perfect predictor would name, token by token.

A token keeps its neurons of the largest |act(gate x)·(up x)| and its heads of the largest output norm, the same share of
both; gate, up and down are read where a neuron is kept, q and o where a head is. k and v are read whole: their
heads are shared, and what they make goes into the cache. To know them takes all the weights, so it is a bound on what a
predictor could do, not a method to run; the predictor's own bytes are not counted. Source: predictors trained for each layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rsparse.gated.model import HEAD_ROLES
from rsparse.gated.parts import attention_heads, block_parts
from rsparse.gated.plan import GatedPlan
from rsparse.gated.rules import rule_class
from rsparse.methods._gated import check_floor, spared_share
from rsparse.models.layout import linear_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(model: PreTrainedModel, sparsity: float) -> GatedPlan:
    """Heads to the nearest whole number, neurons for the rest. Raises RSparseError below the floor: k and v."""
    parts, total, heads = block_parts(model), linear_weights(model), attention_heads(model)
    mlp, attention = spared_share(parts, total, *rule_class("oracle").spares), spared_share(parts, total, *HEAD_ROLES)
    check_floor("Deja Vu", sparsity, mlp + attention)
    dropped = sparsity / (mlp + attention)
    # Neurons take up what whole heads leave, and can neither be fewer than none nor more than all.
    counts = [count for count in range(heads + 1) if -1e-9 <= sparsity - (1 - count / heads) * attention <= mlp + 1e-9]
    kept_heads = min(counts, key=lambda count: abs(count - (1 - dropped) * heads))
    kept = 1 - (sparsity - (1 - kept_heads / heads) * attention) / mlp
    return GatedPlan(
        "dejavu", model.config.model_type, "oracle", sparsity, min(1.0, max(0.0, kept)), kept_heads=kept_heads,
        model=model.config.name_or_path or "",
    )  # fmt: skip
