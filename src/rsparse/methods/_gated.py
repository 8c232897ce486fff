"""Plans for gated MLPs: what a level means in neurons, and the level that a method cannot reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rsparse.errors import RefusedError, RSparseError
from rsparse.gated.parts import BlockParts, block_parts
from rsparse.gated.plan import GatedPlan
from rsparse.gated.rules import rule_class
from rsparse.methods._levels import MAX_LEVEL
from rsparse.models.layout import linear_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEVELS = ("asked", "own")
OWN = 0.5  # of the neurons: what CATS's and GRIFFIN's own papers drop


def check_level(options: Mapping[str, Any]) -> None:
    """Raises RSparseError for a `level` that does not exist."""
    if (level := options.get("level", "asked")) not in LEVELS:
        raise RSparseError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")


def spared_share(parts: list[BlockParts], total: int, *roles: str) -> float:
    """Share of the weights of all linears that linears of those roles hold."""
    return sum(each.size(*roles) for each in parts) / total


def check_floor(name: str, sparsity: float, spared: float) -> None:
    """Raises RefusedError where dropping MAX_LEVEL of the share that `name` can spare is not `sparsity`."""
    most = MAX_LEVEL * spared
    if sparsity > most + 1e-12:
        # Rounded down, so that it can be asked for.
        raise RefusedError(
            f"sparsity {sparsity:g} is past {name}'s floor: it drops at most {math.floor(most * 1000) / 1000:g} on this model"
        )


def neuron_plan(
    model: PreTrainedModel,
    sparsity: float,
    *,
    method: str,
    name: str,
    rule: str,
    level: str,
    thresholds: Mapping[str, float] | None,
    options: Mapping[str, int] | None = None,
    spares: tuple[str, ...] | None = None,
) -> GatedPlan:
    """The same share of neurons kept in every MLP: what `sparsity` leaves, or half of them where `level` is own. `spares`:
    the linears that a dropped neuron counts in, the rule's unless given."""
    check_level({"level": level})
    parts = block_parts(model)
    spared = spared_share(parts, linear_weights(model), *(spares or rule_class(rule).spares))
    if level == "own":
        sparsity = OWN * spared
    check_floor(name, sparsity, spared)
    return GatedPlan(
        method, model.config.model_type, rule, sparsity, 1 - sparsity / spared,
        thresholds=thresholds, options=options or {}, model=model.config.name_or_path or "",
    )  # fmt: skip
