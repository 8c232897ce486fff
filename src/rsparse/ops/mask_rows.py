"""Score, mask and count many rows in as few passes over memory as there can be: what evaluation runs before its GEMM.

One thread of an AVX2 core, x [2048, 576] fp32, beside a GEMM of 14 ms: keep_mask, its sum and torch.where take 7.2 ms
(where is not vectorised), hardshrink, sign, abs, sum and mul 1.1 ms. On a GPU one Triton kernel does it all; an H100,
131072 rows in bf16, ms for kept alone / with dropped:

    in             576            896    1536           4864
    torch.compile  0.266 / 0.309  0.283  0.409 / 0.516  1.210 / 1.602
    Triton         0.110 / 0.165  0.164  0.274 / 0.419  0.881 / 1.353    (a copy of x [576] takes 0.105)
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rsparse.errors import out_of_memory


class MaskedRows(NamedTuple):
    """kept = m⊙x and, where there are factors, dropped = (1−m)⊙x, both [..., in]; counts: [...], kept channels of each row.

    joined: None, or [..., in + room], whose first columns are `kept` and the others room for Vᵀdropped: one GEMM's input.
    """

    kept: Tensor
    dropped: Tensor | None
    counts: Tensor
    joined: Tensor | None = None


def mask_rows(x: Tensor, c: Tensor | None, t: Tensor, row_mask: Tensor | None = None, *, rank: int = 0) -> MaskedRows:
    """Split x by m of `reference.keep_mask`, bit for bit; `rank` is that of the factors, which want `dropped`, or 0.

    x: [..., in], c: [in] fp32 or None, t: 0-d fp32 of 0 or more. `row_mask` [...] is True where a row is
    sparse; the others come back whole, with all channels counted.
    """
    if x.is_cuda:
        return _on_gpu(x, c, t, row_mask, rank)
    score = x.float() if c is None else x.float() * c
    m = F.hardshrink(score, float(t)).sign_().abs_()  # 1 where |x|·c > t: hardshrink leaves what is strictly beyond ±t
    if row_mask is not None:
        m[~row_mask] = 1
    kept = x * m.to(x.dtype)
    return MaskedRows(kept, x - kept if rank else None, m.sum(-1))


def _on_gpu(x: Tensor, c: Tensor | None, t: Tensor, row_mask: Tensor | None, rank: int) -> MaskedRows:
    # Gradients, and torch.compile of a whole model, go through operations that torch knows.
    known = torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled())
    split = None if known else _kernel(x.device, x.dtype)
    if split is None:
        return _plain(x, c, t, row_mask, rank)
    # One GEMM in place of two spares a pass over y [rows, out] and costs a copy of W [out, in]: not worth it for few rows.
    room = -(-rank // 8) * 8 if x.shape[:-1].numel() >= x.shape[-1] else 0
    kept, dropped, counts, buffer = split(x, c, t, row_mask, dropped=rank > 0, room=room)
    return MaskedRows(kept, dropped, counts, buffer if room else None)


def _plain(x: Tensor, c: Tensor | None, t: Tensor, row_mask: Tensor | None, rank: int) -> MaskedRows:
    """Without the CPU form's float(t), for which a GPU would have to be waited for."""
    score = x.abs().float()
    m = (score if c is None else score * c) > t
    if row_mask is not None:
        m = m | ~row_mask.unsqueeze(-1)
    return MaskedRows(torch.where(m, x, 0), torch.where(m, 0, x) if rank else None, m.sum(-1, dtype=torch.int32))


@functools.cache
def _kernel(device: torch.device, dtype: torch.dtype) -> Callable[..., Any] | None:
    """The Triton kernel, or None where it fails on one row: no Triton, no C compiler, an old GPU."""
    try:
        from rsparse.ops.mask_triton import split

        split(torch.ones(1, 16, device=device, dtype=dtype), None, torch.zeros((), device=device), None, dropped=False)
    except Exception as error:  # whatever else it is, plain torch does the same
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"Triton failed ({reason[:200]}); sparse linears go on without it, slower", stacklevel=2)
        return None
    return split
