"""Solve a sparse model's thresholds again, under what it is now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rsparse.calibration.histogram import quantile_threshold, solve_threshold
from rsparse.losses import hidden_states, window_batches
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import recipe_state, set_thresholds, state, unit_members
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STEP = 0.02  # of the kept share, on either side, for a slope


class Rough(NamedTuple):
    """log t of a unit, and d(log t)/d(sparsity) there; 0-d."""

    log_threshold: Tensor
    slope: Tensor


@torch.no_grad()
def settle(model: PreTrainedModel, windows: Tensor, sink_tokens: int, shares: Mapping[str, float] | None = None) -> None:
    """Set each unit's threshold to keep its share of channels on windows [n, seq_len], everything before it sparse.

    `shares` by unit name; those of the recipe unless given. One forward pass: a unit's threshold is solved on its input as
    that arrives. Windows beyond one batch of `losses.batch_tokens` are left out.
    """
    found = recipe_state(model)
    shares = shares or {name: found.recipe.units[name].kept_share for name in unit_members(model)}
    solved: dict[str, float] = {}

    def solve(key: str, rows: Tensor, c: Tensor | None, share: float) -> Tensor:
        solved[key] = solve_threshold(rows, c, share)
        return torch.full((), solved[key], device=rows.device)

    _pass(model, windows, sink_tokens, shares, solve)
    set_thresholds(model, solved)


@torch.no_grad()
def settle_roughly(model: PreTrainedModel, windows: Tensor, sink_tokens: int, shares: Mapping[str, float]) -> dict[str, Rough]:
    """`settle` to ±0.2 % of sparsity, without waiting for the device, as a fit goes on. The recipe keeps its thresholds."""
    found: dict[str, Rough] = {}

    def solve(key: str, rows: Tensor, c: Tensor | None, share: float) -> Tensor:
        around = [min(1.0, max(0.0, share + step)) for step in (_STEP, 0.0, -_STEP)]
        low, log_t, high = (quantile_threshold(rows, c, each).clamp_min(1e-30).log() for each in around)
        found[key] = Rough(log_t, (high - low) / (2 * _STEP))
        return log_t.exp()

    _pass(model, windows, sink_tokens, shares, solve)
    return found


def _pass(
    model: PreTrainedModel,
    windows: Tensor,
    sink_tokens: int,
    shares: Mapping[str, float],
    solve: Callable[[str, Tensor, Tensor | None, float], Tensor],
) -> None:
    def solving(key: str, share: float) -> Any:
        def hook(module: RSparseLinear, args: tuple[Tensor, ...]) -> None:
            module.threshold = solve(key, args[0][:, sink_tokens:].flatten(0, 1), module.channel_scale, share)

        return hook

    members = unit_members(model)
    hooks = [members[key][0].register_forward_pre_hook(solving(key, share)) for key, share in shares.items()]
    try:
        _, ids = next(window_batches(model, windows))
        with state(model).policy.using(TokenPolicy("all", sink_tokens=sink_tokens)):
            hidden_states(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
