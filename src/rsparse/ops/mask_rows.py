"""Score, mask and count many rows in as few passes over memory as there can be: what evaluation runs before its GEMM.

One thread of an AVX2 core, x [2048, 576] fp32, beside a GEMM of 14 ms: keep_mask, its sum and torch.where take 7.2 ms
(where is not vectorised), hardshrink, sign, abs, sum and mul 1.1 ms. On a GPU one compiled kernel does it all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rsparse.ops.compiled import Compiled

COMPILE_ROWS = 256  # below, as in decoding, the launch of a compiled function costs more than it saves


class MaskedRows(NamedTuple):
    """kept = m⊙x and, where it was asked for, dropped = (1−m)⊙x, both [..., in]; counts: [...], kept channels of each row."""

    kept: Tensor
    dropped: Tensor | None
    counts: Tensor


def mask_rows(x: Tensor, c: Tensor | None, t: Tensor, row_mask: Tensor | None = None, *, dropped: bool = False) -> MaskedRows:
    """Split x by m of `reference.keep_mask`, bit for bit.

    x: [..., in], c: [in] fp32 or None, t: 0-d fp32 of 0 or more. `row_mask` [...] is True where a row is
    sparse; the others come back whole, with all channels counted.
    """
    if x.is_cuda:
        return _on_gpu(x, c, t, row_mask, dropped)
    score = x.float() if c is None else x.float() * c
    m = F.hardshrink(score, float(t)).sign_().abs_()  # 1 where |x|·c > t: hardshrink leaves what is strictly beyond ±t
    if row_mask is not None:
        m[~row_mask] = 1
    kept = x * m.to(x.dtype)
    return MaskedRows(kept, x - kept if dropped else None, m.sum(-1))


def _on_gpu(x: Tensor, c: Tensor | None, t: Tensor, row_mask: Tensor | None, dropped: bool) -> MaskedRows:
    rows = x.flatten(0, -2)
    # Two functions of one signature each, with rows as the only length that changes: otherwise every mixture of None and
    # tensor, and a batch of one, compiles anew, and torch.compile gives up at the eighth.
    c = torch.ones(x.shape[-1], device=x.device) if c is None else c
    sparse = torch.ones(len(rows), dtype=torch.bool, device=x.device) if row_mask is None else row_mask.flatten()
    split = _split if dropped else _keep
    found = (split if len(rows) >= COMPILE_ROWS else split.function)(rows, c, t, sparse)
    kept, counts = found[0].view(x.shape), found[-1].view(x.shape[:-1])
    return MaskedRows(kept, found[1].view(x.shape) if dropped else None, counts)


def _mask(x: Tensor, c: Tensor, t: Tensor, sparse: Tensor) -> Tensor:
    return (x.abs().float() * c > t) | ~sparse.unsqueeze(-1)


@Compiled
def _keep(x: Tensor, c: Tensor, t: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    m = _mask(x, c, t, sparse)
    return torch.where(m, x, 0), m.sum(-1, dtype=torch.int32)


@Compiled
def _split(x: Tensor, c: Tensor, t: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m = _mask(x, c, t, sparse)
    return torch.where(m, x, 0), torch.where(m, 0, x), m.sum(-1, dtype=torch.int32)
