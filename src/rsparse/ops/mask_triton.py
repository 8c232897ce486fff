"""The split of mask_rows on a GPU, in one pass over x. Imported at first use: it needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


# One program for any number of rows and any rank: neither is specialised. `columns` is, since 16-byte accesses hang on it.
@triton.jit(do_not_specialize=["rows", "eighths"])  # type: ignore[untyped-decorator]
def _split(  # type: ignore[no-untyped-def]
    x_ptr,  # [rows, columns]
    c_ptr,  # [columns] or None
    t_ptr,  # 0-d
    sparse_ptr,  # [rows] bool or None
    kept_ptr,  # [rows, columns + 8 eighths], of which the first columns are written
    dropped_ptr,  # [rows, columns] or None
    counts_ptr,  # [rows]
    rows,
    columns,
    eighths,  # of the room behind kept: in eights, so that the compiler knows its alignment
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # 131072 rows of 14336 channels pass 2^31
    live = row < rows
    t = tl.load(t_ptr)
    counts = tl.zeros([ROWS], tl.int32)
    if sparse_ptr is not None:
        dense = tl.load(sparse_ptr + row, live, 0) == 0
    for start in range(0, columns, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        inside = live[:, None] & (column < columns)[None, :]
        at = row[:, None] * columns + column[None, :]
        x = tl.load(x_ptr + at, inside, 0)
        score = tl.abs(x.to(tl.float32))
        if c_ptr is not None:
            score = score * tl.load(c_ptr + column, column < columns, 0)[None, :]
        m = score > t
        if sparse_ptr is not None:
            m = m | dense[:, None]
        m = m & inside
        tl.store(kept_ptr + row[:, None] * (columns + 8 * eighths) + column[None, :], tl.where(m, x, 0.0), inside)
        if dropped_ptr is not None:
            tl.store(dropped_ptr + at, tl.where(m, 0.0, x), inside)
        counts += tl.sum(m.to(tl.int32), 1)
    tl.store(counts_ptr + row, counts, live)


def split(
    x: Tensor, c: Tensor | None, t: Tensor, row_mask: Tensor | None, *, dropped: bool, room: int = 0
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(kept, dropped or None, counts, buffer) as `mask_rows` returns them, bit for bit by `reference.keep_mask`.

    x: [..., in], c: [in] fp32 or None, t: 0-d fp32, row_mask: [...] bool or None. `buffer` is [..., in + room],
    kept its first columns and the room, a multiple of 8, unwritten. A NaN is dropped: no score of it exceeds t.
    """
    x = x.contiguous()
    columns = x.shape[-1]
    buffer = x.new_empty(*x.shape[:-1], columns + room)
    rest = torch.empty_like(x) if dropped else None
    counts = x.new_empty(x.shape[:-1], dtype=torch.int32)
    c, row_mask = (None if each is None else each.contiguous() for each in (c, row_mask))
    rows, tile = counts.numel(), (4, 256) if columns <= 1024 else (2, 512)  # the fastest of eleven on an H100
    with torch.cuda.device_of(x):  # Triton launches on the current device, torch on that of its tensors
        grid = (triton.cdiv(rows, tile[0]),)
        _split[grid](x, c, t, row_mask, buffer, rest, counts, rows, columns, room // 8, *tile, num_warps=4)
    return buffer[..., :columns] if room else buffer, rest, counts, buffer
