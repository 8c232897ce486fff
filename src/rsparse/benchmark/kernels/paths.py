"""The ways to run a unit: the decode runtime's, dense ones, TEAL's. What the bench knows of kernels is here and in tiles.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsparse.benchmark.decode.paths import Cublas
from rsparse.benchmark.kernels.cases import ALONE, Block, Linears
from rsparse.ops import dispatch
from rsparse.ops.fused import FusedOps, Group, Norm, fused_ops
from rsparse.ops.fused.masked_tiles import masked_tiles
from rsparse.ops.fused.rows import RowOps
from rsparse.ops.fused.settings import Tiles, known, tiles_for
from rsparse.ops.fused.triton_ops import GATHER_ROWS, TritonOps
from rsparse.ops.fused.types import Section
from rsparse.row_policy import RowPolicy
from rsparse.runtime.fused.pack import pack_group
from rsparse.sparse_linear import RSparseLinear

FACTOR_STD = 0.02


def runtime_ops(device: torch.device) -> FusedOps:
    """What the decode step of a sparse model runs."""
    return fused_ops("triton", device)


def reads_every_weight(rows: int) -> bool:
    """Whether the runtime runs so many rows as a product over m⊙x."""
    return rows > GATHER_ROWS


def sparse_group(linears: Linears, weight: Tensor, bias: Tensor | None, rank: int, generator: torch.Generator) -> Group:
    """What the runtime packs of sparse linears with weight [in, out], which keep all.

    Where there is a rank, factors are random, and the score is the paper's criterion's, scaled by the column norms.
    """
    policy, ops = RowPolicy(), dispatch.resolve("reference", weight.device, weight.dtype)
    members: list[RSparseLinear] = []
    start = 0
    for out in linears.outs:
        linear = nn.Linear(linears.in_features, out, bias=bias is not None, device="meta", dtype=weight.dtype)
        linear.weight = nn.Parameter(weight[:, start : start + out].T, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias[start : start + out], requires_grad=False)
        leader = members[0] if members else None
        members.append(
            RSparseLinear(linear, linears.name, policy, ops, rank=rank, scaled=rank > 0, leader=leader, stacked=True)
        )
        start += out
    for member in members:
        for factor in (member._buffers.get("U"), member._buffers.get("V")):
            if factor is not None:
                factor.normal_(0, FACTOR_STD, generator=generator)
    if members[0].channel_scale is not None:
        members[0].channel_scale.copy_(weight.float().square().sum(1).sqrt())
    members[0].threshold.fill_(float("-inf"))
    return pack_group(members)


def dense_group(weight: Tensor, bias: Tensor | None) -> Group:
    """A dense model's group of weight [in, out] by any strides."""
    threshold = torch.full((1,), float("-inf"), device=weight.device)
    sections = (Section(0, weight.shape[1], 0),)
    return Group(weight, None if bias is None else bias.float(), None, threshold, None, None, sections, dense=True)


def masked_group(weight: Tensor) -> Group:
    """What MaskedTiles reads: weight [in, out] contiguous, and a threshold, which keeps all."""
    threshold = torch.full((1,), float("-inf"), device=weight.device)
    return Group(weight, None, None, threshold, None, None, (Section(0, weight.shape[1], 0),))


class MaskedTiles(RowOps):
    """TEAL's way for one row: the norm or activation by one launch, then the product, whose tiles mask for themselves.

    Neither bias nor residual is added, which is in its favour.
    """

    name = "masked tiles"

    def tiles(self, group: Group) -> Tiles:
        measured = any(shape.startswith("masked ") for shape in known(self.gpu))
        return tiles_for(self.gpu, "masked" if measured else "dense", *group.weight.shape)

    def project_with(
        self, tiles: Tiles, x: Tensor, group: Group, add: Tensor | None, kind: str, norm: Norm | None = None
    ) -> Tensor:
        x = x.contiguous() if kind == "plain" else self._input(x, group, kind, norm)
        return masked_tiles(x, group.threshold, group.weight, self.workspace, tiles, overlap=self.overlap)


class Alone:
    """F.linear and nothing else: neither norm, activation, bias nor residual."""

    name = "cuBLAS alone"

    def project(self, x: Tensor, group: Group, add: Tensor | None = None) -> Tensor:
        return F.linear(x, group.weight.T)

    def norm_project(self, x: Tensor, norm: Norm, group: Group, add: Tensor | None = None) -> Tensor:
        return self.project(x, group)

    def act_project(self, gate_up: Tensor, act: str, group: Group, add: Tensor | None = None) -> Tensor:
        return self.project(gate_up[:, : group.in_features], group)

    def mlp(self, x: Tensor, norm: Norm, gate_up: Group, act: str, down: Group, add: Tensor | None = None) -> Tensor:
        return self.act_project(self.project(x, gate_up), act, down)


def dense_ops(name: str, device: torch.device) -> FusedOps | Alone:
    """One of DENSE, or ALONE; all but `channels` read weights that are stored by output row."""
    if name == "channels":
        return TritonOps(device)
    if name == ALONE:
        return Alone()
    rows = RowOps(device)
    return rows if name == "rows" else Cublas(rows)


def caller(
    ops: FusedOps | Alone, unit: str, block: Block, norm: Norm, groups: Sequence[Group], x: Tensor, add: Tensor | None
) -> Callable[[], Tensor]:
    """One call of the unit, with the norm before it or the residual where a block has it; the activation is the MLP's alone."""
    first = groups[0]
    if unit == "mlp":
        return lambda: ops.mlp(x, norm, first, block.act, groups[1], add)
    if unit in ("o", "down"):
        return lambda: ops.project(x, first, add)
    return lambda: ops.norm_project(x, norm, first)
