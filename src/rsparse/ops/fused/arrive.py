"""The end of a split sum: the program that comes last adds up the parts, in their own order, and writes the result."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrive(counter_ptr, parts):  # type: ignore[no-untyped-def]
    """Whether this program is the last of `parts` to come here; what the others stored before is then visible to it.

    The counter is 0 before the kernel and after it.
    """
    tl.debug_barrier()  # all threads' stores come before the one thread's atomic
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == parts - 1
    tl.debug_barrier()
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def write(total, at, inside, column, live_column, bias_ptr, add_ptr, y_ptr):  # type: ignore[no-untyped-def]
    """y = total + bias + add, rounded once."""
    if bias_ptr is not None:
        total += tl.load(bias_ptr + column, live_column, 0).to(tl.float32)[None, :]
    if add_ptr is not None:
        total += tl.load(add_ptr + at, inside, 0).to(tl.float32)
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), inside)


@triton.jit  # type: ignore[untyped-decorator]
def finish(  # type: ignore[no-untyped-def]
    part_sum,  # [ROWS, COLUMNS] fp32, this program's
    part,
    row,
    column,
    live_column,
    partial_ptr,  # [parts, rows, out] fp32
    counter_ptr,  # of this tile
    bias_ptr,
    add_ptr,
    y_ptr,  # [rows, out]
    rows,
    out,
    parts,
    CHUNK: tl.constexpr = 16,  # parts that are in flight at once; of several rows fewer, which spill otherwise
):
    at = row[:, None] * out + column[None, :]
    inside = (row < rows)[:, None] & live_column[None, :]
    if parts == 1:
        write(part_sum, at, inside, column, live_column, bias_ptr, add_ptr, y_ptr)
    else:
        tl.store(partial_ptr + part * rows * out + at, part_sum, inside)
        if arrive(counter_ptr, parts):
            total = tl.zeros_like(part_sum)
            # .cg: from L2, where other multiprocessors' stores are
            for start in range(0, parts, CHUNK):
                for step in tl.static_range(CHUNK):
                    each = start + step
                    total += tl.load(partial_ptr + each * rows * out + at, inside & (each < parts), 0, cache_modifier=".cg")
            write(total, at, inside, column, live_column, bias_ptr, add_ptr, y_ptr)
