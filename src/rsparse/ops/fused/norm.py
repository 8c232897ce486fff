"""RMSNorm of whole rows, where no linear's select makes it: after a linear (Gemma), and before the head."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rsparse.ops.fused.inputs import inverse_rms, normalise
from rsparse.ops.fused.launch import begin, options
from rsparse.ops.fused.types import Norm


@triton.jit  # type: ignore[untyped-decorator]
def _norm(  # type: ignore[no-untyped-def]
    x_ptr,  # [rows, columns]
    weight_ptr,
    add_ptr,
    y_ptr,
    columns,
    eps,
    PLUS_ONE: tl.constexpr,
    WHOLE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    begin(OVERLAP)
    row = tl.program_id(0) + tl.arange(0, 1)
    inverse = inverse_rms(x_ptr, row, tl.num_programs(0), columns, eps, WHOLE)
    for start in range(0, columns, WHOLE):
        channel = start + tl.arange(0, WHOLE)
        live = (channel < columns)[None, :]
        at = row[:, None] * columns + channel[None, :]
        weight = tl.load(weight_ptr + channel, channel < columns, 0).to(tl.float32)[None, :]
        y = normalise(tl.load(x_ptr + at, live, 0), inverse[:, None], weight, PLUS_ONE)
        if add_ptr is not None:
            y = (y.to(tl.float32) + tl.load(add_ptr + at, live, 0).to(tl.float32)).to(y.dtype)
        tl.store(y_ptr + at, y, live)


def rms_norm(x: Tensor, norm: Norm, add: Tensor | None = None, *, overlap: bool = False) -> Tensor:
    """RMSNorm(x) [+ add], x: [rows, n], rounded as `types.Norm` says."""
    x, add = x.contiguous(), None if add is None else add.contiguous()
    y = torch.empty_like(x)
    columns = x.shape[1]
    WHOLE = min(8192, triton.next_power_of_2(columns))
    _norm[(x.shape[0],)](
        x, norm.weight, add, y, columns, norm.eps, norm.plus_one, WHOLE, num_warps=8 if WHOLE > 1024 else 4, **options(overlap)
    )
    return y
