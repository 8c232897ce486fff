"""One linear's select and gather with a fixed split, for the custom ops of `ops/triton_kernel.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rsparse.ops.fused.gather import gather
from rsparse.ops.fused.lists import Lists, linear_segments
from rsparse.ops.fused.select import select
from rsparse.ops.fused.settings import gpu_name, tiles_for
from rsparse.ops.fused.types import Section
from rsparse.ops.fused.workspace import Workspace

_workspaces: dict[tuple[torch.device, int], Workspace] = {}


def select_rows(
    x: Tensor, c: Tensor | None, t: Tensor, V: Tensor | None, sparse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(indices, values, counts, z) of x [rows, in], as `triton_kernel.Selection`; sparse: [rows] bool or None.

    z has no columns where there is no V: an op returns tensors.
    """
    rows, columns = x.shape
    length, segments = linear_segments(columns)
    rank = 0 if V is None else V.shape[1]
    indices = x.new_empty(segments * length, dtype=torch.int32)
    values = x.new_empty(rows, segments * length)
    counts = x.new_empty(segments, dtype=torch.int32)
    z = x.new_empty(segments, rows, rank, dtype=torch.float32)
    lists = Lists(
        values, indices, counts, z if rank else None, columns=columns, length=length, segments=segments,
        row_stride=segments * length, rank=rank, compact=True,
    )  # fmt: skip
    with torch.cuda.device_of(x):  # Triton launches on the current device, torch on that of its tensors
        select(x, lists, t.view(1), c, None if V is None else V.contiguous(), sparse=sparse)
    return indices, values, counts, z


def gather_rows(
    weight: Tensor, U: Tensor | None, indices: Tensor, values: Tensor, counts: Tensor, z: Tensor | None, bias: Tensor | None
) -> Tensor:
    """y [rows, out] of what `select_rows` chose. weight: [out, in], best stored by channel, U: [out, r], bias: [out]."""
    (out, columns), rows = weight.shape, values.shape[0]
    length, segments = linear_segments(columns)
    if U is None or z is None:
        U, z = None, None
    if weight.stride(0) != 1:
        return _whole(weight, U, indices, values, counts, z, bias, length)
    lists = Lists(
        values, indices, counts, z, columns=columns, length=length, segments=segments, row_stride=segments * length,
        rank=0 if U is None else U.shape[1], compact=True,
    )  # fmt: skip
    tiles = tiles_for(gpu_name(weight.device), "gather", columns, out)
    with torch.cuda.device_of(weight):
        return gather(
            lists, weight.t(), _workspace(weight.device), tiles, (Section(0, out, 0),), None if U is None else U.t(), bias,
            rows=rows,
        )  # fmt: skip


def _whole(
    weight: Tensor, U: Tensor | None, indices: Tensor, values: Tensor, counts: Tensor, z: Tensor | None, bias: Tensor | None,
    length: int,
) -> Tensor:  # fmt: skip
    """Every weight against kept channels and zeros, for a weight stored by output."""
    place = torch.arange(indices.numel(), device=indices.device)
    used = place % length < counts.repeat_interleave(length)
    columns = weight.shape[1]
    at = torch.where(used, indices, columns).long()  # what no list holds goes to one more channel, and away
    x = values.new_zeros(values.shape[0], columns + 1).index_add_(1, at, torch.where(used, values, 0))[:, :columns]
    y = F.linear(x, weight, bias)
    return y if U is None or z is None else y + F.linear(z.sum(0).to(y.dtype), U)


def _workspace(device: torch.device) -> Workspace:
    """A stream's own, since kernels on two streams run at once. A graph that is being captured keeps what it allocates."""
    if device.type != "cuda":
        return Workspace(device)
    if torch.cuda.is_current_stream_capturing():
        return Workspace(device, capturing=True)
    return _workspaces.setdefault((device, torch.cuda.current_stream(device).cuda_stream), Workspace(device))
