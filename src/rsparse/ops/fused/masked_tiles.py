"""TEAL's way (arXiv 2408.14690), for comparison: no list, each tile makes its mask and skips channels by masked loads."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsparse.ops.fused.arrive import finish
from rsparse.ops.fused.launch import begin, options
from rsparse.ops.fused.lists import segmented
from rsparse.ops.fused.settings import Tiles
from rsparse.ops.fused.workspace import Workspace


@triton.jit(do_not_specialize=["parts"])  # type: ignore[untyped-decorator]
def _masked(  # type: ignore[no-untyped-def]
    x_ptr,  # [columns]
    t_ptr,
    w_ptr,  # [columns, out]
    y_ptr,
    partial_ptr,
    counter_ptr,
    columns,
    out,
    length,
    parts,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    tile, part = tl.program_id(0), tl.program_id(1)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    live = column < out
    begin(OVERLAP)
    t = tl.load(t_ptr)
    end = tl.minimum((part + 1) * length, columns)
    sums = tl.zeros([BLOCK_K, BLOCK_N], tl.float32)
    for start in tl.range(part * length, end, BLOCK_K, num_stages=STAGES):
        channel = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + channel, channel < end, 0).to(tl.float32)
        m = (tl.abs(x) > t) & (channel < end)
        at = channel.to(tl.int64)[:, None] * out + column[None, :]
        w = tl.load(w_ptr + at, m[:, None] & live[None, :], 0, eviction_policy="evict_first")
        sums += w.to(tl.float32) * tl.where(m, x, 0)[:, None]
    total = tl.sum(sums, 0)[None, :]
    finish(total, part, tl.arange(0, 1), column, live, partial_ptr, counter_ptr + tile, None, None, y_ptr, 1, out, parts)


def masked_tiles(
    x: Tensor, threshold: Tensor, weight: Tensor, workspace: Workspace, tiles: Tiles, *, overlap: bool = False
) -> Tensor:
    """y [1, out] = W (m⊙x) with m = |x| > threshold. x: [1, in], weight: [in, out], threshold: fp32 of one element."""
    columns, out = weight.shape
    length, parts = segmented(columns, tiles.split)
    programs = triton.cdiv(out, tiles.block_n)
    y = x.new_empty(1, out)
    _masked[(programs, parts)](
        x, threshold, weight, y, workspace.floats("parts", parts * out), workspace.counters(programs), columns, out,
        length, parts, tiles.block_n, tiles.block_k, tiles.stages, num_warps=tiles.warps, **options(overlap),
    )  # fmt: skip
    return y
