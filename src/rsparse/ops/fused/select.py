"""Score, mask and compact what a group reads, segment by segment of its channels, and z = Vᵀ((1−m)⊙x) where it has factors.

A program compacts its own segment, so nothing waits for a pass over all channels; the norm before the linear is made again
in each, from a row that lies in L2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsparse.ops.fused.inputs import inverse_rms, read
from rsparse.ops.fused.launch import begin, options
from rsparse.ops.fused.lists import Lists
from rsparse.ops.fused.types import Norm

Z_CHANNELS, Z_COLUMNS = 128, 32  # of V that a program holds at a time


@triton.jit
def _keeps(x, t, c_ptr, sparse_ptr, mask, row, channel, rows, columns, end):  # type: ignore[no-untyped-def]
    """m of x [row, channel] by threshold t: both halves of the kernel must draw it alike."""
    score = tl.abs(x.to(tl.float32))
    if c_ptr is not None:
        score = score * tl.load(c_ptr + mask * columns + channel, channel < end, 0)[None, :]
    m = score > t
    if sparse_ptr is not None:
        m = m | (tl.load(sparse_ptr + row, row < rows, 1) == 0)[:, None]
    return m


@triton.jit  # type: ignore[untyped-decorator]
def _compact(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    c_ptr,
    t_ptr,
    sparse_ptr,
    indices_ptr,
    values_ptr,
    counts_ptr,
    segment,
    segments,
    rows,
    columns,
    length,
    eps,
    KIND: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENT: tl.constexpr,
    WHOLE: tl.constexpr,
    MASKS: tl.constexpr,
    COMPACT: tl.constexpr,
):
    """The lists of one segment, of all rows together: a channel that any row keeps is in, with 0 for the others."""
    first = segment * length
    end = tl.minimum(first + length, columns)
    row = tl.arange(0, ROWS)
    channel = first + tl.arange(0, SEGMENT)
    inverse = row.to(tl.float32)
    if KIND == "norm":
        inverse = inverse_rms(x_ptr, row, rows, columns, eps, WHOLE)
    x = read(x_ptr, weight_ptr, inverse, row, channel, rows, columns, end, KIND, PLUS_ONE)
    inside = (row < rows)[:, None] & (channel < end)[None, :]
    for mask in tl.static_range(MASKS):
        m = _keeps(x, tl.load(t_ptr + mask), c_ptr, sparse_ptr, mask, row, channel, rows, columns, end) & inside
        kept = tl.where(m, x, 0.0).to(x.dtype)
        base = values_ptr + (mask * rows + row[:, None]) * segments * length
        if COMPACT:
            union = tl.max(m.to(tl.int32), 0)
            place = first + tl.cumsum(union, 0) - 1
            tl.store(indices_ptr + mask * segments * length + place, channel, union != 0)
            tl.store(base + place[None, :], kept, (row < rows)[:, None] & (union != 0)[None, :])
            tl.store(counts_ptr + mask * segments + segment, tl.sum(union, 0))
        else:
            tl.store(base + channel[None, :], kept, inside)


@triton.jit  # type: ignore[untyped-decorator]
def _low_rank(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    c_ptr,
    t_ptr,
    sparse_ptr,
    v_ptr,
    z_ptr,
    segment,
    job,
    rows,
    columns,
    length,
    eps,
    mask0,
    mask1,
    mask2,
    rank,
    KIND: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    WHOLE: tl.constexpr,
    SECTIONS: tl.constexpr,
    BLOCKS: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A segment's part of z, of one row and one block of a section's columns of V; only dropped channels are read."""
    block = job % (SECTIONS * BLOCKS)
    row = job // (SECTIONS * BLOCKS) + tl.arange(0, 1)
    section = block // BLOCKS
    mask = tl.where(section == 0, mask0, tl.where(section == 1, mask1, mask2))
    column = (block % BLOCKS) * COLUMNS + tl.arange(0, COLUMNS)
    live = column < rank
    t = tl.load(t_ptr + mask)
    inverse = row.to(tl.float32)
    if KIND == "norm":
        inverse = inverse_rms(x_ptr, row, rows, columns, eps, WHOLE)
    z = tl.zeros([CHANNELS, COLUMNS], tl.float32)
    first = segment * length
    end = tl.minimum(first + length, columns)
    for start in range(first, end, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        x = read(x_ptr, weight_ptr, inverse, row, channel, rows, columns, end, KIND, PLUS_ONE)
        m = _keeps(x, t, c_ptr, sparse_ptr, mask, row, channel, rows, columns, end)
        dropped = tl.sum(tl.where(m, 0.0, x.to(tl.float32)), 0)  # of one row
        reads = ((dropped != 0) & (channel < end))[:, None] & live[None, :]
        at = channel[:, None].to(tl.int64) * (SECTIONS * rank) + (section * rank + column)[None, :]
        z += tl.load(v_ptr + at, reads, 0).to(tl.float32) * dropped[:, None]
    to = (segment * rows + row[:, None]) * (SECTIONS * rank) + (section * rank + column)[None, :]
    tl.store(z_ptr + to, tl.sum(z, 0)[None, :], live[None, :])


@triton.jit(do_not_specialize=["mask0", "mask1", "mask2"])  # type: ignore[untyped-decorator]
def _select(  # type: ignore[no-untyped-def]
    x_ptr,  # [rows, columns], or [rows, 2 columns] for an activation
    weight_ptr,  # [columns] of the norm, or None
    c_ptr,  # [MASKS, columns] fp32 or None
    t_ptr,  # [MASKS] fp32
    sparse_ptr,  # [rows] bool or None
    v_ptr,  # [columns, SECTIONS · rank]
    indices_ptr,  # [MASKS, segments · length] int32
    values_ptr,  # [MASKS, rows, segments · length]
    counts_ptr,  # [MASKS, segments] int32
    z_ptr,  # [segments, rows, SECTIONS · rank] fp32
    rows,
    columns,
    length,
    eps,
    mask0,
    mask1,
    mask2,
    rank,
    KIND: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    ROWS: tl.constexpr,  # power of two from `rows` on
    SEGMENT: tl.constexpr,  # power of two from `length` on
    WHOLE: tl.constexpr,
    MASKS: tl.constexpr,
    SECTIONS: tl.constexpr,
    BLOCKS: tl.constexpr,  # of COLUMNS in a section
    COMPACT: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    begin(OVERLAP)
    segment, job = tl.program_id(0), tl.program_id(1)
    if job == 0:
        _compact(
            x_ptr, weight_ptr, c_ptr, t_ptr, sparse_ptr, indices_ptr, values_ptr, counts_ptr, segment, tl.num_programs(0),
            rows, columns, length, eps, KIND, PLUS_ONE, ROWS, SEGMENT, WHOLE, MASKS, COMPACT,
        )  # fmt: skip
    elif SECTIONS > 0:
        _low_rank(
            x_ptr, weight_ptr, c_ptr, t_ptr, sparse_ptr, v_ptr, z_ptr, segment, job - 1,
            rows, columns, length, eps, mask0, mask1, mask2, rank,
            KIND, PLUS_ONE, WHOLE, SECTIONS, BLOCKS, CHANNELS, COLUMNS,
        )  # fmt: skip


def select(
    x: Tensor,
    lists: Lists,
    threshold: Tensor,
    channel_scale: Tensor | None = None,
    V: Tensor | None = None,
    masks: tuple[int, ...] = (0,),
    *,
    kind: str = "plain",
    norm: Norm | None = None,
    sparse: Tensor | None = None,
    overlap: bool = False,
) -> None:
    """Fill `lists` from x [rows, in]; for `kind` `silu` and `gelu_tanh` x is [rows, 2·in], for `norm` the norm comes first.

    threshold: [masks] fp32, channel_scale: [masks, in] fp32 or None, V: [in, sections · r]; `masks` has each section's.
    sparse: [rows] bool or None, False where a row keeps all.
    """
    x, rows, columns = x.contiguous(), x.shape[0], lists.columns
    sections = len(masks) if V is not None else 0
    rank = lists.rank
    blocks = triton.cdiv(rank, Z_COLUMNS)
    ROWS = triton.next_power_of_2(rows)
    WHOLE = min(triton.next_power_of_2(columns), max(1024, 8192 // ROWS))
    SEGMENT = triton.next_power_of_2(lists.length)
    mask0, mask1, mask2 = (*masks, 0, 0)[:3]
    _select[(lists.segments, 1 + sections * blocks * rows)](
        x, None if norm is None else norm.weight, channel_scale, threshold, sparse, V,
        lists.indices, lists.values, lists.counts, lists.z,
        rows, columns, lists.length, 0.0 if norm is None else norm.eps, mask0, mask1, mask2, rank,
        kind, norm is not None and norm.plus_one, ROWS, SEGMENT, WHOLE, threshold.shape[0], sections, blocks, lists.compact,
        CHANNELS=Z_CHANNELS, COLUMNS=Z_COLUMNS, num_warps=4 if ROWS * SEGMENT <= 2048 else 8, **options(overlap),
    )  # fmt: skip
