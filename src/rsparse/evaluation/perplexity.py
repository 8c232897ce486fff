"""Perplexity of a model on windows of text, and how far it is from its own dense form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse.bytes_read import bytes_per_token, dense_bytes_per_token
from rsparse.errors import RSparseError
from rsparse.losses import compare, hidden_states, token_nll
from rsparse.models.layout import check_positions
from rsparse.progress import progress
from rsparse.sparse_model import achieved_sparsity, is_sparse, measuring, state
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}  # a GPU is launch-bound on a small model with less


@dataclass(frozen=True)
class Perplexity:
    """Figures over `tokens` scored tokens. KL is KL(dense ‖ sparse) in nats per token; None on a dense model.

    `achieved_sparsity` is over the rows that ran sparse, `sparse_row_share` says how many of all they were.
    `window_nll` is the mean −log p of each window, for paired comparisons.
    """

    perplexity: float
    tokens: int
    window_nll: list[float]
    dense_perplexity: float | None = None
    kl_to_dense: float | None = None
    token_agreement: float | None = None
    achieved_sparsity: float = 0.0
    sparsity_by_unit: dict[str, float] | None = None
    sparse_row_share: float = 0.0
    bytes_per_token: int = 0
    dense_bytes_per_token: int = 0

    def metrics(self) -> dict[str, Any]:
        """The record's metrics, without what was not measured."""
        return {name: value for name, value in vars(self).items() if value is not None}


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    windows: Tensor,
    token_policy: TokenPolicy | None = None,
    *,
    against_dense: bool = True,
    label: str = "eval",
) -> Perplexity:
    """Score windows [n, seq_len] of token ids, each on its own, from its second token on.

    Under `decode` the first half of each window is the dense prompt, and only the rest is scored. A sparse
    model is compared with its own weights run dense unless `against_dense` is False.
    """
    token_policy = token_policy or TokenPolicy()
    device = next(model.parameters()).device
    check_positions(model, windows.shape[1], f"windows of {windows.shape[1]} tokens")
    prompt = windows.shape[1] // 2 if token_policy.kind == "decode" else 0
    first = max(prompt - 1, 0)  # the position whose prediction is the first scored token
    if windows.shape[1] - 1 - first < 1:
        raise RSparseError(f"windows of {windows.shape[1]} tokens leave nothing to score under token policy {token_policy}")
    batch = max(1, BATCH_TOKENS.get(device.type, 2048) // windows.shape[1])
    totals: dict[str, list[Tensor]] = {"nll": [], "dense_nll": [], "kl": [], "agree": []}
    with measuring(model) as meter, progress(len(windows), label, unit="window") as bar:
        for ids in windows.to(device).split(batch):
            if is_sparse(model):
                _sparse_batch(model, ids, token_policy, prompt, first, against_dense, totals)
            else:
                totals["nll"].append(token_nll(model, ids)[:, first:])
            bar.update(len(ids))
    joined = {name: torch.cat(parts).double() for name, parts in totals.items() if parts}
    nll, dense_bytes = joined["nll"], dense_bytes_per_token(model)
    result: dict[str, Any] = {
        "perplexity": _exp(nll),
        "tokens": nll.numel(),
        "window_nll": [round(value, 5) for value in nll.mean(1).tolist()],
        "dense_bytes_per_token": dense_bytes,
        "bytes_per_token": dense_bytes,
    }
    if is_sparse(model):
        total, by_unit = achieved_sparsity(model, meter)
        result.update(achieved_sparsity=total, sparsity_by_unit=by_unit)
        result.update(sparse_row_share=meter.sparse_rows / windows.numel(), bytes_per_token=bytes_per_token(model, by_unit))
    if "kl" in joined:
        result.update(dense_perplexity=_exp(joined["dense_nll"]))
        result.update(kl_to_dense=float(joined["kl"].mean()), token_agreement=float(joined["agree"].mean()))
    return Perplexity(**result)


def _sparse_batch(
    model: PreTrainedModel,
    ids: Tensor,
    token_policy: TokenPolicy,
    prompt: int,
    first: int,
    against_dense: bool,
    totals: dict[str, list[Tensor]],
) -> None:
    rows = state(model).policy
    lengths = torch.full((len(ids),), prompt, device=ids.device) if prompt else None
    with rows.using(token_policy, lengths):
        if not against_dense:
            totals["nll"].append(token_nll(model, ids)[:, first:])
            return
        hidden = hidden_states(model, ids)
    with rows.using(TokenPolicy("dense")):
        dense_hidden = hidden_states(model, ids)
    found = compare(model, ids, hidden, dense_hidden)
    for name, parts in totals.items():
        parts.append(getattr(found, name)[:, first:])


def _exp(nll: Tensor) -> float:
    mean = float(nll.mean())
    if not math.isfinite(mean):
        raise RSparseError("the model's output is not finite on this text; try --dtype float32 or a lower sparsity")
    return math.exp(min(mean, 700.0))
