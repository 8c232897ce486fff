"""Perplexity of a model on windows of text, and how far it is from its own dense form."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse.bytes_read import bytes_per_token, dense_bytes_per_token
from rsparse.errors import RSparseError
from rsparse.evaluation.paired import bounded_exp
from rsparse.losses import compare, hidden_states, nll_of, window_batches
from rsparse.meter import SparsityMeter
from rsparse.models.layout import check_positions
from rsparse.progress import progress
from rsparse.sparse_model import achieved_sparsity, is_sparse, measuring, state
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Perplexity:
    """Figures over `tokens` scored tokens. KL is KL(dense ‖ sparse) in nats per token; None on a dense model.

    `achieved_sparsity` is over the rows that ran sparse, `sparse_row_share` says how many of all they were.
    `window_nll` is the mean −log p of each window, for paired comparisons. `eval_tokens_per_second` counts
    all that the evaluation did; the forward rates are of the blocks alone, without head and losses.
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
    eval_tokens_per_second: float = 0.0
    forward_tokens_per_second: float = 0.0
    dense_forward_tokens_per_second: float | None = None

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
    dense_hidden: Tensor | None = None,
    label: str = "eval",
) -> Perplexity:
    """Score windows [n, seq_len] of token ids, each on its own, from its second token on.

    Under `decode` the first half of each window is the dense prompt, and only the rest is scored. A sparse
    model is compared with its own weights run dense unless `against_dense` is False; `dense_hidden`, from
    `losses.dense_states` on the same windows, spares that its forward passes.
    """
    token_policy = token_policy or TokenPolicy()
    device = next(model.parameters()).device
    check_positions(model, windows.shape[1], f"windows of {windows.shape[1]} tokens")
    prompt = windows.shape[1] // 2 if token_policy.kind == "decode" else 0
    first = max(prompt - 1, 0)  # the position whose prediction is the first scored token
    if windows.shape[1] - 1 - first < 1:
        raise RSparseError(f"windows of {windows.shape[1]} tokens leave nothing to score under token policy {token_policy}")
    scored = _Pass(model, token_policy, prompt, against_dense)
    totals: dict[str, list[Tensor]] = {"nll": [], "dense_nll": [], "kl": [], "agree": []}
    if next(model.parameters()).is_cuda:  # compiles, and takes memory of that size, off the clock: it cost the first 40 %
        scored.losses(next(window_batches(model, windows))[1], None)
        scored = _Pass(model, token_policy, prompt, against_dense)
    start = time.perf_counter()
    with measuring(model) as meter, progress(len(windows), label, unit="window") as bar:
        for index, ids in window_batches(model, windows):
            reference = None if dense_hidden is None else dense_hidden[index : index + len(ids)].to(device)
            for name, values in scored.losses(ids, reference).items():
                totals[name].append(values[:, first:])
            bar.update(len(ids))
    joined = {name: torch.cat(parts).double() for name, parts in totals.items() if parts}
    seconds = time.perf_counter() - start
    sizes = _sizes(model, meter, windows.numel())
    return Perplexity(**(_figures(joined) | sizes | scored.rates(windows.numel(), seconds)))


def _figures(joined: dict[str, Tensor]) -> dict[str, Any]:
    """From losses by token, [windows, scored]."""
    nll = joined["nll"]
    windows = [round(value, 5) for value in nll.mean(1).tolist()]
    found: dict[str, Any] = {"perplexity": _exp(nll), "tokens": nll.numel(), "window_nll": windows}
    if "kl" in joined:
        found |= {"dense_perplexity": _exp(joined["dense_nll"]), "kl_to_dense": float(joined["kl"].mean())}
        found["token_agreement"] = float(joined["agree"].mean())
    return found


def _sizes(model: PreTrainedModel, meter: SparsityMeter, tokens: int) -> dict[str, Any]:
    """What was read, over the rows that ran sparse."""
    dense_bytes = dense_bytes_per_token(model)
    if not is_sparse(model):
        return {"dense_bytes_per_token": dense_bytes, "bytes_per_token": dense_bytes}
    total, by_unit = achieved_sparsity(model, meter)
    found: dict[str, Any] = {
        "achieved_sparsity": total,
        "sparsity_by_unit": by_unit,
        "sparse_row_share": meter.sparse_rows / tokens,
    }
    return found | {"dense_bytes_per_token": dense_bytes, "bytes_per_token": bytes_per_token(model, by_unit)}


class _Pass:
    """Runs batches of windows, sparse and, to compare with, dense; keeps the seconds that the blocks took."""

    def __init__(self, model: PreTrainedModel, token_policy: TokenPolicy, prompt: int, against_dense: bool) -> None:
        self.model, self.token_policy, self.prompt, self.against_dense = model, token_policy, prompt, against_dense
        device = next(model.parameters()).device
        self.clock, self.dense_clock = _Clock(device), _Clock(device)

    def rates(self, tokens: int, seconds: float) -> dict[str, float]:
        """Tokens a second: of all that took `seconds`, and of the blocks alone."""
        found = {"eval_tokens_per_second": tokens / seconds, "forward_tokens_per_second": tokens / self.clock.seconds}
        dense = self.dense_clock.seconds
        return found | ({"dense_forward_tokens_per_second": tokens / dense} if dense else {})

    def losses(self, ids: Tensor, dense_hidden: Tensor | None) -> dict[str, Tensor]:
        """Columns of `losses.Comparison` for ids [batch, tokens]; of a dense model only `nll`."""
        model = self.model
        if not is_sparse(model):
            with self.clock:
                hidden = hidden_states(model, ids)
            return {"nll": nll_of(model, ids, hidden)}
        rows = state(model).policy
        lengths = torch.full((len(ids),), self.prompt, device=ids.device) if self.prompt else None
        with self.clock, rows.using(self.token_policy, lengths):
            hidden = hidden_states(model, ids)
        if not self.against_dense:
            return {"nll": nll_of(model, ids, hidden)}
        if dense_hidden is None:
            with self.dense_clock, rows.using(TokenPolicy("dense")):
                dense_hidden = hidden_states(model, ids)
        return dict(vars(compare(model, ids, hidden, dense_hidden)))


class _Clock:
    """Adds up the seconds of its blocks, the GPU's work included."""

    def __init__(self, device: torch.device) -> None:
        self.seconds, self._cuda = 0.0, device.type == "cuda"

    def __enter__(self) -> None:
        self._synchronize()
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._synchronize()
        self.seconds += time.perf_counter() - self._start

    def _synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def _exp(nll: Tensor) -> float:
    mean = float(nll.mean())
    if not math.isfinite(mean):
        raise RSparseError("the model's output is not finite on this text; try --dtype float32 or a lower sparsity")
    return bounded_exp(mean)
