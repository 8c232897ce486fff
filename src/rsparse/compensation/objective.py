"""KL(dense ‖ sparse) and its gradient at the hidden states, a slice of the vocabulary's logits at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsparse.losses import head_slices, logits_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def kl_gradient(model: PreTrainedModel, hidden: Tensor, dense_hidden: Tensor) -> tuple[float, Tensor]:
    """Mean KL over positions, in nats, and its gradient in `hidden`; both [batch, tokens, hidden_size].

    The logits' own graph ends with each slice: whole, they would be 10 GB for 4096 tokens of a vocabulary of 256 k.
    """
    dense_rows, count = dense_hidden.flatten(0, 1), hidden.shape[:-1].numel()
    gradients, total = [], torch.zeros((), dtype=torch.float64, device=hidden.device)
    for start, rows in head_slices(hidden.detach(), model):
        rows = rows.requires_grad_()
        with torch.no_grad():
            dense = logits_of(model, dense_rows[start : start + len(rows)]).log_softmax(-1)
        with torch.enable_grad():
            sparse = logits_of(model, rows).log_softmax(-1)
            kl = torch.nn.functional.kl_div(sparse, dense, reduction="sum", log_target=True)
        gradients.append(torch.autograd.grad(kl, rows)[0] / count)
        total += kl.detach()
    return float(total) / count, torch.cat(gradients).view_as(hidden)
