"""The ops of one linear by Triton kernels, as torch custom ops: what a model runs token by token outside the decode runtime.

Weights are read by input channel, so `prepare` turns their storage round once, at load: W stays [out, in] to everyone, as the
transposed view of an [in, out] memory, and dense rows use the same bits.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rsparse.ops.fused.lists import linear_segments
from rsparse.ops.mask_rows import mask_rows as mask_rows
from rsparse.ops.reference import Packed
from rsparse.ops.reference import masked_gemm as masked_gemm

GATHER_ROWS = 1  # on an H100 the channels that either of two rows keeps take longer than a masked product
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot run there, or None."""
    if device.type != "cuda":
        return f"it needs a CUDA GPU, not {device.type}"
    try:
        importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed"
    if not torch.cuda.is_available():
        return "this PyTorch sees no CUDA GPU"
    if dtype not in DTYPES:
        return f"it has no {str(dtype).removeprefix('torch.')} kernels"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0"
    return _no_compiler()


def _no_compiler() -> str | None:
    """Why Triton cannot build what launches its kernels, which is C, or None: it takes $CC alone where that is set."""
    named = os.environ.get("CC")
    if named is not None and shutil.which(named) is None:
        return f"Triton needs a C compiler, and there is no {named!r}, which $CC names: unset it, with gcc installed"
    if named is None and not (shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler: install gcc or clang, or name one in $CC"
    return None


def prepare(linears: Iterable[nn.Linear]) -> None:
    """Store each weight by input channel, one at a time; its values and its shape stay."""
    for linear in linears:
        if not by_channel(linear.weight):
            linear.weight.data = linear.weight.data.t().contiguous().t()


def by_channel(weight: Tensor) -> bool:
    """Whether W [out, in] is the transposed view of an [in, out] with channels in rows, alone or beside other weights."""
    return weight.stride(0) == 1 and weight.stride(1) >= weight.shape[0]


class Selection(NamedTuple):
    """indices: [segments · length] int32, the kept channels of each segment first; values: [rows, segments · length];
    counts: [segments] int32; z: [segments, rows, r] fp32 parts of Vᵀ((1−m)⊙x), or None.

    Of rows together: a channel that any row keeps is listed, with 0 for those that drop it.
    """

    indices: Tensor
    values: Tensor
    counts: Tensor
    z: Tensor | None


def pack(weight: Tensor, U: Tensor | None = None, V: Tensor | None = None, *, deflated: bool = False) -> Packed:
    """W [out, in] with U [out, r] and V [in, r] as they are; a weight that `prepare` did not turn is multiplied whole.

    The kernels know the mask when they make z and so have no use for R: ValueError where `deflated` asks for it.
    """
    if deflated:
        raise ValueError("the triton backend reads W, not R = W − U Vᵀ")
    return Packed(weight, U, V)


def select(
    x: Tensor,
    c: Tensor | None,
    t: Tensor,
    mu: Tensor | None = None,
    V: Tensor | None = None,
    row_mask: Tensor | None = None,
) -> Selection:
    """Score, threshold and compact x [rows, in] as `reference.select` does; z is of the dropped channels."""
    x = x if mu is None else x - mu
    indices, values, counts, z = torch.ops.rsparse.select(x, c, t, V, row_mask)
    return Selection(indices, values, counts, None if V is None else z)


def gather_gemv(
    packed: Packed, indices: Tensor, values: Tensor, counts: Tensor, z: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """y [rows, out] of the rows that `select` chose."""
    return torch.ops.rsparse.gather(packed.weight, packed.U, indices, values, counts, z, bias)


@torch.library.custom_op("rsparse::select", mutates_args=())
def _select(
    x: Tensor, c: Tensor | None, t: Tensor, V: Tensor | None, row_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from rsparse.ops.fused.linear import select_rows

    return select_rows(x, c, t, V, row_mask)


@torch.library.custom_op("rsparse::gather", mutates_args=())
def _gather(
    weight: Tensor, U: Tensor | None, indices: Tensor, values: Tensor, counts: Tensor, z: Tensor | None, bias: Tensor | None
) -> Tensor:
    from rsparse.ops.fused.linear import gather_rows

    return gather_rows(weight, U, indices, values, counts, z, bias)


@_select.register_fake
def _(
    x: Tensor, c: Tensor | None, t: Tensor, V: Tensor | None, row_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    length, segments = linear_segments(x.shape[1])
    room = length * segments
    return (
        x.new_empty(room, dtype=torch.int32),
        x.new_empty(x.shape[0], room),
        x.new_empty(segments, dtype=torch.int32),
        x.new_empty(segments, x.shape[0], 0 if V is None else V.shape[1], dtype=torch.float32),
    )


@_gather.register_fake
def _(
    weight: Tensor, U: Tensor | None, indices: Tensor, values: Tensor, counts: Tensor, z: Tensor | None, bias: Tensor | None
) -> Tensor:
    return values.new_empty(values.shape[0], weight.shape[0])
