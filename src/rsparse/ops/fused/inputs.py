"""What a linear reads, made as it is loaded: x itself, RMSNorm(x), or act(gate)·up, rounded where transformers rounds."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """tl has none without libdevice, which the interpreter lacks."""
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit  # type: ignore[untyped-decorator]
def inverse_rms(x_ptr, row, rows, columns, eps, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """rsqrt(mean x² + eps) of rows `row` [ROWS] of x [rows, columns], WHOLE channels at a time."""
    squares = tl.zeros([row.shape[0], WHOLE], tl.float32)
    for start in range(0, columns, WHOLE):
        channel = start + tl.arange(0, WHOLE)
        inside = (row < rows)[:, None] & (channel < columns)[None, :]
        x = tl.load(x_ptr + row[:, None] * columns + channel[None, :], inside, 0).to(tl.float32)
        squares += x * x
    return tl.rsqrt(tl.sum(squares, 1) / columns + eps)


@triton.jit  # type: ignore[untyped-decorator]
def normalise(x, inverse, weight, PLUS_ONE: tl.constexpr):  # type: ignore[no-untyped-def]
    """x·inverse·weight in x's dtype; inverse and weight fp32, of shapes that x broadcasts to. See types.Norm."""
    wide = x.to(tl.float32) * inverse
    if PLUS_ONE:
        return (wide * (1 + weight)).to(x.dtype)
    return (wide.to(x.dtype).to(tl.float32) * weight).to(x.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def read(  # type: ignore[no-untyped-def]
    x_ptr,  # [rows, columns]; [rows, 2 columns] where KIND is an activation
    weight_ptr,  # [columns], of the norm
    inverse,  # [ROWS] of inverse_rms where KIND is norm
    row,  # [ROWS]
    channel,  # [CHANNELS]
    rows,
    columns,
    end,  # channels from here on are 0
    KIND: tl.constexpr,
    PLUS_ONE: tl.constexpr,
):
    """[ROWS, CHANNELS] of what the linear reads, in x's dtype."""
    live = channel < end
    inside = (row < rows)[:, None] & live[None, :]
    if KIND == "plain":
        return tl.load(x_ptr + row[:, None] * columns + channel[None, :], inside, 0)
    elif KIND == "norm":
        x = tl.load(x_ptr + row[:, None] * columns + channel[None, :], inside, 0)
        weight = tl.load(weight_ptr + channel, live, 0).to(tl.float32)
        return normalise(x, inverse[:, None], weight[None, :], PLUS_ONE)
    else:
        at = row[:, None] * (2 * columns) + channel[None, :]
        gate = tl.load(x_ptr + at, inside, 0)
        up = tl.load(x_ptr + at + columns, inside, 0)
        wide = gate.to(tl.float32)
        if KIND == "silu":
            wide = wide / (1 + tl.exp(-wide))
        else:
            inner = 0.7978845608028654 * (wide + 0.044715 * wide * wide * wide)
            wide = 0.5 * wide * (1 + tanh(inner))
        return (wide.to(gate.dtype).to(tl.float32) * up.to(tl.float32)).to(gate.dtype)
