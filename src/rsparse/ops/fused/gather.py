"""y = W (m⊙x) + U z + b over compacted channels: rows of the input-major weight, read where a channel is kept.

A program sums one segment's channels for one tile of columns, or the low-rank part; the last of a tile adds the parts up.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsparse.ops.fused.arrive import finish
from rsparse.ops.fused.launch import begin, options
from rsparse.ops.fused.lists import Lists, segmented
from rsparse.ops.fused.settings import Tiles
from rsparse.ops.fused.types import Section
from rsparse.ops.fused.workspace import Workspace


@triton.jit(do_not_specialize=["mask0", "mask1", "mask2", "tile1", "tile2", "split", "parts"])  # type: ignore[untyped-decorator]
def _gather(  # type: ignore[no-untyped-def]
    values_ptr,  # [masks, rows, row_stride]
    indices_ptr,  # [masks, row_stride] or None: all channels
    counts_ptr,  # [masks, segments]
    w_ptr,  # [columns, out], a channel every w_step
    z_ptr,  # [segments, rows, SECTIONS · rank]
    u_ptr,  # [rank, out] by strides
    bias_ptr,
    add_ptr,
    y_ptr,
    partial_ptr,
    counter_ptr,
    rows,
    columns,
    out,
    w_step,
    length,  # of a segment; without lists, of a part
    row_stride,
    mask_stride,
    segments,
    rank,
    u_step,
    u_column,
    start1,  # sections begin at columns 0, start1, start2, with tiles 0, tile1, tile2
    start2,
    tile1,
    tile2,
    mask0,
    mask1,
    mask2,
    split,  # parts over the channels
    parts,  # split, and one more for the low-rank part
    SECTIONS: tl.constexpr,
    ROWS: tl.constexpr,  # 1, or 16 for a matrix product
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    LOW_RANK: tl.constexpr,
    SEGMENTS: tl.constexpr,  # power of two from `segments` on, where LOW_RANK
    EVEN: tl.constexpr,  # no tile passes its section's end
    OVERLAP: tl.constexpr,
):
    tile = tl.program_id(0)
    part = parts - 1 - tl.program_id(1)  # the low-rank part begins first: few bytes, one load after another
    section = 0
    mask = mask0
    first_column = tile * BLOCK_N
    stop = out
    if SECTIONS == 2:
        section = tl.where(tile >= tile1, 1, 0)
        mask = tl.where(tile >= tile1, mask1, mask0)
        first_column = tl.where(tile >= tile1, start1, 0) + (tile - tl.where(tile >= tile1, tile1, 0)) * BLOCK_N
        stop = tl.where(tile >= tile1, out, start1)
    elif SECTIONS == 3:
        section = tl.where(tile >= tile2, 2, tl.where(tile >= tile1, 1, 0))
        mask = tl.where(tile >= tile2, mask2, tl.where(tile >= tile1, mask1, mask0))
        start = tl.where(tile >= tile2, start2, tl.where(tile >= tile1, start1, 0))
        first_column = start + (tile - tl.where(tile >= tile2, tile2, tl.where(tile >= tile1, tile1, 0))) * BLOCK_N
        stop = tl.where(tile >= tile2, out, tl.where(tile >= tile1, start2, start1))
    column = first_column + tl.arange(0, BLOCK_N)
    live = tl.full([BLOCK_N], True, tl.int1) if EVEN else column < stop
    row = tl.arange(0, ROWS)
    begin(OVERLAP)
    sums = tl.zeros([BLOCK_K if ROWS == 1 else ROWS, BLOCK_N], tl.float32)
    if part < split:
        first = part * length
        count = tl.minimum(length, columns - first)
        if indices_ptr is not None:
            count = tl.load(counts_ptr + mask * segments + part)
        values = values_ptr + mask * mask_stride
        for start in tl.range(0, count, BLOCK_K, num_stages=STAGES):
            step = start + tl.arange(0, BLOCK_K)
            used = step < count
            place = first + step
            channel = place if indices_ptr is None else tl.load(indices_ptr + mask * row_stride + place, used, 0)
            at = channel.to(tl.int64)[:, None] * w_step + column[None, :]
            # evict_first: no weight is read again before all others were
            w = tl.load(w_ptr + at, used[:, None] & live[None, :], 0, eviction_policy="evict_first")
            if ROWS == 1:
                x = tl.load(values + place, used, 0)
                sums += w.to(tl.float32) * x.to(tl.float32)[:, None]
            else:
                x = tl.load(values + row[:, None] * row_stride + place[None, :], (row < rows)[:, None] & used[None, :], 0)
                sums = tl.dot(x, w, sums, input_precision="ieee")
    elif LOW_RANK:
        segment = tl.arange(0, SEGMENTS)
        z_step = rows * SECTIONS * rank
        # Each of the loads of z of several rows would have memory of its own in a pipeline, more than smaller GPUs have.
        for start in tl.range(0, rank, BLOCK_K, num_stages=2 if ROWS == 1 else 1):
            place = start + tl.arange(0, BLOCK_K)
            used = place < rank
            u_at = place[:, None] * u_step + column[None, :] * u_column
            u = tl.load(u_ptr + u_at, used[:, None] & live[None, :], 0)
            # All segments' parts of z are in flight at once: one after the other they took longer than the kept channels.
            z_at = z_ptr + section * rank + place
            if ROWS == 1:
                z_all = tl.load(z_at[None, :] + segment[:, None] * z_step, (segment < segments)[:, None] & used[None, :], 0)
                sums += u.to(tl.float32) * tl.sum(z_all, 0)[:, None]
            else:
                z = tl.zeros([ROWS, BLOCK_K], tl.float32)
                inside = (row < rows)[:, None] & used[None, :]
                for each in tl.static_range(SEGMENTS):
                    z += tl.load(
                        z_at[None, :] + row[:, None] * (SECTIONS * rank) + each * z_step, inside & (each < segments), 0
                    )
                sums = tl.dot(z.to(u.dtype), u, sums, input_precision="ieee")
    if ROWS == 1:
        sums = tl.sum(sums, 0)[None, :]
    finish(
        sums, part, row, column, live, partial_ptr, counter_ptr + tile, bias_ptr, add_ptr, y_ptr, rows, out, parts,
        CHUNK=16 if ROWS == 1 else 4,
    )  # fmt: skip


def gather(
    lists: Lists,
    weight: Tensor,
    workspace: Workspace,
    tiles: Tiles,
    sections: tuple[Section, ...],
    U: Tensor | None = None,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    *,
    rows: int,
    overlap: bool = False,
) -> Tensor:
    """y [rows, out] of what `select` left in `lists`, in the dtype of its values.

    weight: [in, out], contiguous in `out`, U: [r, out] of any strides, bias: [out], add: [rows, out].
    """
    out = weight.shape[1]
    y = lists.values.new_empty(rows, out)
    add = None if add is None else add.contiguous()
    BLOCK_N, BLOCK_K = tiles.block_n, tiles.block_k
    ROWS = 1
    if rows > 1:
        ROWS, BLOCK_K = 16, max(BLOCK_K, 16)
    counts = [triton.cdiv(section.stop - section.start, BLOCK_N) for section in sections]
    starts = [section.start for section in sections[1:]] + [0, 0]
    firsts = [sum(counts[: index + 1]) for index in range(len(counts) - 1)] + [0, 0]
    masks = [section.mask for section in sections] + [0, 0]
    length, split = lists.length, lists.segments
    if not lists.compact:
        length, split = segmented(lists.columns, tiles.split)
    parts = split + (U is not None)
    mask_stride = rows * lists.row_stride
    # Kernels that do not see it are the same for all.
    SEGMENTS = triton.next_power_of_2(lists.segments) if U is not None else 1
    _gather[(sum(counts), parts)](
        lists.values, lists.indices, lists.counts, weight, lists.z, U, bias, add, y,
        workspace.floats("parts", parts * rows * out), workspace.counters(sum(counts)),
        rows, lists.columns, out, weight.stride(0), length, lists.row_stride, mask_stride, lists.segments, lists.rank,
        *((0, 0) if U is None else U.stride()), *starts[:2], *firsts[:2], *masks[:3],
        split, parts, len(sections), ROWS, BLOCK_N, BLOCK_K, tiles.stages, U is not None, SEGMENTS,
        all((section.stop - section.start) % BLOCK_N == 0 for section in sections),
        num_warps=tiles.warps, **options(overlap),
    )  # fmt: skip
    return y
