"""Levels, scores and low rank of all units chosen together by the KL to the dense model; nothing is fitted by gradient.

The start is TEAL's greedy (see `_greedy`), which is blind to what a block's error does further on and holds all blocks
at one level; `search.allocation` then moves bytes between kinds and blocks, and takes a column-norm score or a low-rank
share for a kind of linear where that lowers the KL. `criterion` gives all units one score instead, from the greedy on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsparse.calibration.store import Calibration
from rsparse.errors import RSparseError
from rsparse.fingerprint import weights_sha
from rsparse.methods._greedy import greedy_levels
from rsparse.methods._levels import check_grouping
from rsparse.models.layout import unit_shapes
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.search.allocation import LEAST, Choice, allocate
from rsparse.search.resume import AllocationFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SCORES = ("magnitude", "column_norm")
STEP, GREEDY_TOKENS = 0.05, 1024  # of the greedy that the levels start from


def check(options: Mapping[str, Any]) -> None:
    """Raises RSparseError for values that no model would take."""
    if (criterion := options.get("criterion")) not in (None, *SCORES):
        raise RSparseError(f"criterion must be one of {', '.join(SCORES)}, got {criterion!r}")
    for name, least in (("tokens", 1), ("rounds", 0), ("polish", 0), ("seed", 0)):
        if (value := options.get(name, least)) < least:
            raise RSparseError(f"{name} must be {least} or more, got {value}")


def prepare(
    model: PreTrainedModel,
    sparsity: float,
    *,
    calibration: Calibration | None = None,
    tokens: int | None = None,
    rounds: int = 2,
    polish: int = 0,
    lowrank: bool = True,
    criterion: str | None = None,
    grouping: str = "linear",
    seed: int = 0,
    state_file: Path | None = None,
) -> Recipe:
    """A recipe whose KL on `tokens` of the calibration is as low as the moves get it: unless given, 4096, on a GPU 16384.

    `criterion` is the score of all units; without one each kind gets the better of SCORES. `state_file` is written after each
    block of the greedy and each pass behind it; where it is there, the allocation goes on from it. Raises RSparseError without
    a calibration, and for the state of another allocation.
    """
    if tokens is None:  # on a GPU a pass of 4096 tokens through a small model waits for launches
        tokens = 4096 if next(model.parameters()).device.type == "cpu" else 16384
    check({"tokens": tokens, "rounds": rounds, "polish": polish, "criterion": criterion, "seed": seed})
    check_grouping(grouping)
    if calibration is None:
        raise RSparseError("method joint needs a calibration")
    if sparsity < LEAST:
        raise RSparseError(f"method joint starts at sparsity {LEAST}, got {sparsity}")
    first, *others = SCORES if criterion is None else (criterion,)
    settings = {
        "sparsity": sparsity, "criterion": criterion or [*SCORES], "step": STEP, "greedy_tokens": GREEDY_TOKENS,
        "tokens": tokens, "rounds": rounds, "polish": polish, "lowrank": lowrank, "grouping": grouping, "seed": seed,
    }  # fmt: skip
    kept = AllocationFile(state_file, _settings(model, calibration) | settings)
    levels = greedy_levels(
        model, calibration, sparsity, method="joint", criterion=first, grouping=grouping, step=STEP, tokens=GREEDY_TOKENS,
        known=kept.blocks, keep=kept.add_block,
    )  # fmt: skip
    start = {name: Choice(level, criterion=first) for name, level in levels.items()}
    found = allocate(
        model, calibration, start, criteria=others, kept=kept, tokens=tokens, rounds=rounds, polish=polish, lowrank=lowrank,
        grouping=grouping, seed=seed,
    )  # fmt: skip
    units = {
        name: UnitRecipe.uniform(linears, size, each.sparsity, each.rho, criterion=each.criterion)
        for (name, (linears, size)), each in zip(unit_shapes(model, grouping).items(), found.choices.values(), strict=True)
    }
    return Recipe(model.config.model_type, units, "joint", grouping, "dropped", model.config.name_or_path or "")


def _settings(model: PreTrainedModel, calibration: Calibration) -> dict[str, str]:
    """What decides an allocation beside its options."""
    return {
        "model": weights_sha(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "calibration": calibration.stamp(calibration.windows),
    }
