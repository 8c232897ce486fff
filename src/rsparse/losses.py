"""Next-token losses over windows, with the vocabulary's logits made a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_ELEMENTS = 1 << 24  # 64 MiB of fp32 logits at a time: a 262k vocabulary never needs a whole window's


def hidden_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """What the head reads: [batch, tokens, hidden]."""
    out = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    states: Tensor = out.last_hidden_state
    return states


def logits_of(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits in fp32 [..., vocab] of hidden [..., hidden_size], Gemma-2's soft cap included."""
    logits = model.get_output_embeddings()(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def token_nll(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """−log p of each token after the first: [batch, tokens − 1] fp32. Windows carry no padding."""
    hidden = hidden_states(model, input_ids)[:, :-1]
    targets = input_ids[:, 1:].flatten()
    parts = [
        F.cross_entropy(logits_of(model, rows), targets[start : start + len(rows)], reduction="none")
        for start, rows in _slices(hidden, model)
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
    for start, rows in _slices(hidden[:, :-1], model):
        stop = start + len(rows)
        sparse = F.log_softmax(logits_of(model, rows), dim=-1)
        dense = F.log_softmax(logits_of(model, dense_rows[start:stop]), dim=-1)
        columns[0].append(F.nll_loss(sparse, targets[start:stop], reduction="none"))
        columns[1].append(F.nll_loss(dense, targets[start:stop], reduction="none"))
        columns[2].append((dense.exp() * (dense - sparse)).sum(-1))
        columns[3].append(sparse.argmax(-1) == dense.argmax(-1))
    shaped = [torch.cat(column).view(len(input_ids), -1) for column in columns]
    return Comparison(*shaped)


def _slices(hidden: Tensor, model: PreTrainedModel) -> Iterator[tuple[int, Tensor]]:
    rows = hidden.flatten(0, 1)
    step = max(1, LOGIT_ELEMENTS // model.config.vocab_size)
    for start in range(0, len(rows), step):
        yield start, rows[start : start + step]
