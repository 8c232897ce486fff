"""Dense y = W x for a weight [out, in]: the language model's head, as it is stored, and the linears of a dense model."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsparse.ops.fused.inputs import tanh
from rsparse.ops.fused.launch import begin, options
from rsparse.ops.fused.settings import Tiles


@triton.jit  # type: ignore[untyped-decorator]
def _matvec(  # type: ignore[no-untyped-def]
    x_ptr,  # [rows, columns] at row_stride
    w_ptr,  # [out, columns]
    bias_ptr,  # [out] or None
    add_ptr,  # [rows, out] or None
    y_ptr,  # [rows, out]
    rows,
    columns,
    row_stride,
    out,
    softcap,
    CAPPED: tl.constexpr,
    ROWS: tl.constexpr,  # 1, or 16 for a matrix product
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, ROWS)
    begin(OVERLAP)
    sums = tl.zeros([BLOCK_N, BLOCK_K if ROWS == 1 else ROWS], tl.float32)
    weights = w_ptr + column.to(tl.int64)[:, None] * columns
    for start in tl.range(0, columns, BLOCK_K, num_stages=STAGES):
        channel = start + tl.arange(0, BLOCK_K)
        used = channel < columns
        inside = (column < out)[:, None] & used[None, :]
        w = tl.load(weights + channel[None, :], inside, 0, eviction_policy="evict_first")
        if ROWS == 1:
            sums += w.to(tl.float32) * tl.load(x_ptr + channel, used, 0).to(tl.float32)[None, :]
        else:
            x = tl.load(x_ptr + row[None, :] * row_stride + channel[:, None], used[:, None] & (row < rows)[None, :], 0)
            sums = tl.dot(w, x, sums, input_precision="ieee")
    if ROWS == 1:
        sums = tl.sum(sums, 1)[:, None]
    if CAPPED:
        sums = softcap * tanh(sums / softcap)
    at = row[None, :].to(tl.int64) * out + column[:, None]
    inside = (column < out)[:, None] & (row < rows)[None, :]
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + column, column < out, 0)[:, None]
    if add_ptr is not None:
        sums += tl.load(add_ptr + at, inside, 0).to(tl.float32)
    tl.store(y_ptr + at, sums.to(y_ptr.dtype.element_ty), inside)


def matvec(
    x: Tensor, weight: Tensor, y: Tensor, tiles: Tiles, softcap: float | None = None,
    bias: Tensor | None = None, add: Tensor | None = None, *, overlap: bool = False,
) -> Tensor:  # fmt: skip
    """Write W x to y [rows, out], of any dtype; softcap·tanh(·/softcap) where given, then + bias [out] + add [rows, out].

    x: [rows, in], contiguous in a row, weight: [out, in] contiguous.
    """
    rows, (out, columns) = x.shape[0], weight.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    add = None if add is None else add.contiguous()
    ROWS, BLOCK_N, BLOCK_K = 1, tiles.block_n, tiles.block_k
    if rows > 1:
        ROWS, BLOCK_N, BLOCK_K = 16, max(16, BLOCK_N), max(16, BLOCK_K)
    _matvec[(triton.cdiv(out, BLOCK_N),)](
        x, weight, bias, add, y, rows, columns, x.stride(0), out, softcap or 0.0, softcap is not None,
        ROWS, BLOCK_N, BLOCK_K, tiles.stages, num_warps=tiles.warps, **options(overlap),
    )  # fmt: skip
    return y
