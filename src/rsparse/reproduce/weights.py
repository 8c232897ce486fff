"""Weights rounded to few bits, simulated: the values that such a checkpoint would give, in the model's own dtype."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsparse.models.layout import sites

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUP = 128  # inputs that share a scale and a zero point


@torch.no_grad()
def round_to_nearest(weight: Tensor, bits: int, group: int = GROUP) -> Tensor:
    """weight [out, in] → the same shape and dtype, each group of `group` inputs of an output on 2^bits levels from its least to
    its largest value. Groups divide as their inputs come; the last may be shorter."""
    parts = []
    for part in weight.float().split(group, dim=1):
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
        parts.append(low + ((part - low) / step).round() * step)
    return torch.cat(parts, 1).to(weight.dtype)


@contextlib.contextmanager
@torch.no_grad()
def rounded_weights(model: PreTrainedModel, bits: int) -> Iterator[None]:
    """The linears of the dense `model`'s blocks rounded in place, for as long as the block runs; kept on the CPU meanwhile."""
    linears = [linear for block in sites(model) for site in block for linear in site.linears.values()]
    kept = [linear.weight.detach().to("cpu", copy=True) for linear in linears]
    try:
        for linear in linears:
            linear.weight.copy_(round_to_nearest(linear.weight, bits))
        yield
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight.copy_(weight)
