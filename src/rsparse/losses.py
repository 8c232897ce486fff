"""Next-token losses over windows, with the vocabulary's logits made a slice at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsparse.ops.compiled import Compiled
from rsparse.sparse_model import is_sparse, state
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# fp32 logits made at a time: 64 MiB on a CPU; 1 GiB on a GPU, where a slice of few rows is a GEMM of a bad shape.
LOGIT_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}
# Hidden states of one batch on a GPU: with less, a small model's forward pass waits for launches, a masked one's most.
HIDDEN_ELEMENTS = 1 << 27


def batch_tokens(model: PreTrainedModel) -> int:
    """Tokens that evaluation runs at a time: 2048 on a CPU; on a GPU as many as keep it busy, by the hidden size."""
    if next(model.parameters()).device.type == "cpu":
        return 2048
    return max(8192, HIDDEN_ELEMENTS // int(model.config.hidden_size))


def hidden_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """What the head reads: [batch, tokens, hidden]."""
    out = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    states: Tensor = out.last_hidden_state
    return states


def window_batches(model: PreTrainedModel, windows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first window's index, windows on the model's device) of windows [n, seq_len], `batch_tokens` at a time."""
    device, size = next(model.parameters()).device, max(1, batch_tokens(model) // windows.shape[1])
    for index in range(0, len(windows), size):
        yield index, windows[index : index + size].to(device)


@torch.no_grad()
def dense_states(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """What the head reads of the dense model, [n, seq_len, hidden] on its device, to compare several sparse forms with."""
    dense: Any = state(model).policy.using(TokenPolicy("dense")) if is_sparse(model) else contextlib.nullcontext()
    with dense:
        return torch.cat([hidden_states(model, ids) for _, ids in window_batches(model, windows)])


def logits_of(model: PreTrainedModel, hidden: Tensor, *, unrounded: bool = False) -> Tensor:
    """Logits in fp32 [..., vocab] of hidden [..., hidden_size], Gemma-2's soft cap included.

    The head rounds them to its own dtype first; `unrounded` takes fp32 products of the same numbers in its place.
    """
    head = model.get_output_embeddings()
    logits = F.linear(hidden.float(), head.weight.float()) if unrounded else head(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def nll_of(model: PreTrainedModel, input_ids: Tensor, hidden: Tensor) -> Tensor:
    """−log p of each token after the first, [batch, tokens − 1] fp32, from hidden [batch, tokens, hidden_size]."""
    targets = input_ids[:, 1:].flatten()
    parts = [
        F.cross_entropy(logits_of(model, rows), targets[start : start + len(rows)], reduction="none")
        for start, rows in head_slices(hidden[:, :-1], model)
    ]
    return torch.cat(parts).view(len(input_ids), -1)


@dataclass(frozen=True)
class Comparison:
    """Per position [batch, tokens − 1]: −log p of both models, KL(dense ‖ sparse), and equal first choices."""

    nll: Tensor
    dense_nll: Tensor
    kl: Tensor
    agree: Tensor


def compare(model: PreTrainedModel, input_ids: Tensor, hidden: Tensor, dense_hidden: Tensor) -> Comparison:
    """Losses of `model`'s head on two sets of hidden states [batch, tokens, hidden] of the same tokens."""
    targets = input_ids[:, 1:].flatten()
    columns: list[list[Tensor]] = [[], [], [], []]
    dense_rows = dense_hidden[:, :-1].flatten(0, 1)
    for start, rows in head_slices(hidden[:, :-1], model):
        stop = start + len(rows)
        found = _columns(logits_of(model, rows), logits_of(model, dense_rows[start:stop]), targets[start:stop])
        for column, part in zip(columns, found, strict=True):
            column.append(part)
    shaped = [torch.cat(column).view(len(input_ids), -1) for column in columns]
    return Comparison(*shaped)


@Compiled
def _columns(sparse_logits: Tensor, dense_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sparse, dense = F.log_softmax(sparse_logits, dim=-1), F.log_softmax(dense_logits, dim=-1)
    rows = targets.unsqueeze(-1)
    kl = (dense.exp() * (dense - sparse)).sum(-1)
    agree = sparse.argmax(-1) == dense.argmax(-1)
    return -sparse.gather(-1, rows).squeeze(-1), -dense.gather(-1, rows).squeeze(-1), kl, agree


def head_slices(hidden: Tensor, model: PreTrainedModel) -> Iterator[tuple[int, Tensor]]:
    """(first row's index, rows) of hidden [..., hidden_size], as many at a time as their logits have room for."""
    rows = hidden.flatten(0, -2)
    step = max(1, LOGIT_ELEMENTS.get(hidden.device.type, 1 << 24) // model.config.vocab_size)
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]
