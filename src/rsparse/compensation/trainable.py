"""The reference ops with gradients: exact masks forward, and a threshold's gradient through a sigmoid in its place.

The straight-through estimator: m = |x|·c > t forward; backward dm/d(log t) = −σ'(u)/T with u = (log |x|·c − log t)/T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsparse.ops import reference
from rsparse.ops.compiled import Compiled
from rsparse.ops.dispatch import Backend
from rsparse.ops.mask_rows import MaskedRows
from rsparse.ops.mask_rows import mask_rows as mask_rows_exactly

TEMPERATURE = 0.4  # of log scores: channels within about a factor of 2 of the threshold speak for it


def mask_rows(x: Tensor, c: Tensor | None, t: Tensor, row_mask: Tensor | None = None, *, rank: int = 0) -> MaskedRows:
    """`ops.mask_rows`, differentiable in x and t."""
    kept, counts = _Mask.apply(x, c, t, row_mask)
    return MaskedRows(kept, x - kept if rank else None, counts, None)


class _Mask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor | None, t: Tensor, row_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        masked = mask_rows_exactly(x, c, t, row_mask)
        ctx.save_for_backward(x, c, t, row_mask)
        ctx.mark_non_differentiable(masked.counts)
        return masked.kept, masked.counts

    @staticmethod
    def backward(ctx: Any, d_kept: Tensor, d_counts: Tensor) -> Any:
        x, c, t, row_mask = ctx.saved_tensors
        width = x.shape[-1]
        c = torch.ones(width, device=x.device) if c is None else c
        sparse = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if row_mask is None else row_mask
        rows = x.reshape(-1, width), c, t, sparse.reshape(-1), d_kept.reshape(-1, width)
        if not ctx.needs_input_grad[2]:
            return _through(*rows).view_as(x), None, None, None
        d_x, d_t = _through_both(*rows)
        return d_x.view_as(x), None, d_t.to(t.dtype), None


@Compiled
def _through(x: Tensor, c: Tensor, t: Tensor, sparse: Tensor, d_kept: Tensor) -> Tensor:
    m = (x.abs().float() * c > t) | ~sparse.unsqueeze(-1)
    return torch.where(m, d_kept, 0)


@Compiled
def _through_both(x: Tensor, c: Tensor, t: Tensor, sparse: Tensor, d_kept: Tensor) -> tuple[Tensor, Tensor]:
    score = x.abs().float() * c
    m = (score > t) | ~sparse.unsqueeze(-1)
    near = torch.sigmoid((score.clamp_min(1e-30).log() - t.log()) / TEMPERATURE)
    slope = near * (1 - near) / TEMPERATURE * sparse.unsqueeze(-1)
    return torch.where(m, d_kept, 0), -(d_kept.float() * x.float() * slope).sum() / t


BACKEND = Backend("trainable", 0, reference.pack, mask_rows, reference.select, reference.gather_gemv, reference.masked_gemm)
