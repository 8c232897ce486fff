"""What runs per token, in plain torch: the specification of every other backend.

Equations: design of R-Sparse (arXiv 2504.19449), with the low-rank part written over the whole input:
y = W (m⊙x) + U Vᵀ((1−m)⊙x) + b = (W − U Vᵀ)(m⊙x) + U (Vᵀx) + b.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rsparse.ops.mask_rows import MaskedRows
from rsparse.ops.mask_rows import mask_rows as mask_rows

# Plain torch gains nothing from a compacted list: for one row of 576 → 1536 select and gather_gemv take 180 µs,
# a mask and masked_gemm 118, dense 85 (one AVX2 core, fp32, rank 8).
GATHER_ROWS = 0


@dataclass(frozen=True)
class Packed:
    """A unit's weights as a backend wants them; here nothing is moved.

    weight: [out, in], U: [out, r], V: [in, r]. `deflated` says that weight holds R = W − U Vᵀ.
    """

    weight: Tensor
    U: Tensor | None = None
    V: Tensor | None = None
    deflated: bool = False


class Selection(NamedTuple):
    """Kept channels first, ascending; behind them the dropped ones with value 0, so every index is valid.

    indices: [rows, in] int64, values: [rows, in], counts: [rows] int32, z = Vᵀx: [rows, r] or None.
    """

    indices: Tensor
    values: Tensor
    counts: Tensor
    z: Tensor | None


def deflate(weight: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """R = W − U Vᵀ, made in fp32 from U and V as rounded, then rounded to the weight's dtype."""
    return (weight.float() - U.float() @ V.float().T).to(weight.dtype)


def pack(weight: Tensor, U: Tensor | None = None, V: Tensor | None = None, *, deflated: bool = False) -> Packed:
    """Pack W [out, in] with U [out, r] and V [in, r]; deflated=True makes R, a second copy of the weight."""
    if U is None or V is None:
        return Packed(weight)
    return Packed(deflate(weight, U, V) if deflated else weight, U, V, deflated)


def keep_mask(x: Tensor, c: Tensor | None, t: Tensor | float) -> Tensor:
    """m = |x|·c > t. x: [..., in], c: [in] fp32 or None for ones; compared in fp32, whatever x's dtype."""
    score = x.abs().float()  # fp32: a 0-d fp32 threshold would otherwise be rounded to x's dtype
    return (score if c is None else score * c) > t


def select(
    x: Tensor,
    c: Tensor | None,
    t: Tensor | float,
    mu: Tensor | None = None,
    V: Tensor | None = None,
    row_mask: Tensor | None = None,
) -> Selection:
    """Score, threshold and compact x [rows, in].

    With `mu` [in] the channels are x − mu throughout, and the caller's bias carries W·mu. `row_mask` [rows]
    is True where a row is sparse; the others keep every channel.
    """
    x = x if mu is None else x - mu
    m = keep_mask(x, c, t)
    if row_mask is not None:
        m = m | ~row_mask.unsqueeze(-1)
    indices = torch.argsort(~m, dim=-1, stable=True)
    values = torch.where(m, x, 0).gather(-1, indices)
    return Selection(indices, values, m.sum(-1, dtype=torch.int32), None if V is None else x @ V)


def gather_gemv(
    packed: Packed, indices: Tensor, values: Tensor, counts: Tensor, z: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """y [rows, out] of the rows that `select` chose; `counts` is there for backends that stop at it."""
    x = torch.zeros_like(values).scatter_(-1, indices, values)
    y = F.linear(x, packed.weight, bias)
    if packed.U is None or packed.V is None or z is None:
        return y
    return y + F.linear(z if packed.deflated else z - x @ packed.V, packed.U)


def masked_gemm(packed: Packed, x: Tensor, rows: MaskedRows, bias: Tensor | None = None) -> Tensor:
    """The same function for many rows: x [..., in] and what `mask_rows` made of it, with `dropped` where there are factors
    that are not deflated. A row that keeps all adds exact zeros."""
    if packed.U is None or packed.V is None:
        return F.linear(rows.kept, packed.weight, bias)
    U, V = packed.U, packed.V
    dropped = (x if packed.deflated or rows.dropped is None else rows.dropped).flatten(0, -2)
    if rows.joined is not None:
        # W kept + U z = [W | U] [kept | z]. H100, bf16, 131072 rows, 576 → 1536: 0.415 ms, against 0.347 for W alone and
        # 0.711 for the addmm below, whose other product comes on top.
        columns, room = x.shape[-1], rows.joined.shape[-1] - x.shape[-1]
        U, V = (F.pad(factor, (0, room - factor.shape[1])) for factor in (U, V))
        torch.mm(dropped, V, out=rows.joined.flatten(0, -2)[:, columns:])
        return F.linear(rows.joined, torch.cat([packed.weight, U], 1), bias)
    if x.is_cuda and U.shape[1] % 8:  # cuBLAS has no fast kernel for 16-bit rows that are no multiple of 16 bytes
        U, V = (F.pad(factor, (0, -factor.shape[1] % 8)) for factor in (U, V))
    # The large product adds to the small one: one pass over y and one rounding less than their sum.
    y = torch.addmm(F.linear(dropped @ V, U, bias), rows.kept.flatten(0, -2), packed.weight.T)
    return y.view(*x.shape[:-1], -1)
