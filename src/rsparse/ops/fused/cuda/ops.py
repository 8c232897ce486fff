"""TritonOps with stream.cu for sparse linears and MLPs of one row, and attend.cu for attention, where they cover them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rsparse.ops.fused.cuda import attend as attention_kernel
from rsparse.ops.fused.cuda.stream import covers, fits, stream
from rsparse.ops.fused.rows import RowOps
from rsparse.ops.fused.settings import Tiles, channels_of, stream_form, tiles_for
from rsparse.ops.fused.triton_ops import TritonOps, merged
from rsparse.ops.fused.types import Attention, Cache, Group, Norm

NARROWEST = 16  # columns of a tile: a row's piece is then one sector of 32 bytes, a pair's two share theirs with neighbours


class CudaAttention(TritonOps):
    """TritonOps whose attention has keys and values on the way before it looks at q (times: docs/log.md)."""

    def attend(self, qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention) -> Tensor:
        if not attention_kernel.covers(qkv, cache, cos_sin, attention):
            return super().attend(qkv, cache, cos_sin, attention)
        form = attention_kernel.form_for(qkv, cache, blocks=self.programs // 2, clusters=self.clusters)
        return attention_kernel.attend(qkv, cache, cos_sin, attention, self.workspace, form)

    @functools.cached_property
    def clusters(self) -> bool:
        """Whether blocks of the GPU can share memory."""
        return self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= (9, 0)


class CudaOps(CudaAttention):
    """One launch for a linear in place of two, two for an MLP in place of four."""

    def mlp(self, x: Tensor, norm: Norm, gate_up: Group, act: str, down: Group, add: Tensor | None = None) -> Tensor:
        if x.shape[0] == 1:
            tiles = self.stream_tiles(gate_up, paired=True)
            if covers(gate_up, tiles, paired=True):
                gated = stream(x, gate_up, merged(gate_up), tiles, self.workspace, norm=norm, act=act)
                return self.project(gated, down, add)
        return super().mlp(x, norm, gate_up, act, down, add)

    def _project(self, x: Tensor, group: Group, add: Tensor | None, kind: str, norm: Norm | None = None) -> Tensor:
        if x.shape[0] == 1 and kind in ("plain", "norm"):
            tiles = self.stream_tiles(group)
            if covers(group, tiles):
                return stream(x, group, merged(group), tiles, self.workspace, norm=norm, add=add)
        return super()._project(x, group, add, kind, norm)

    def stream_tiles(self, group: Group, *, paired: bool = False) -> Tiles:
        """Settings for the group's shape: narrower where a tile would pass a section's end, of more warps where a thread would
        hold too much of the input."""
        tiles = tiles_for(self.gpu, "paired" if paired else "stream", *group.weight.shape)
        columns, warps = tiles.block_n, tiles.warps
        while columns > NARROWEST and not fits(group, columns, paired=paired):
            columns //= 2
        while group.in_features > channels_of(warps) and warps < 32:
            warps *= 2
        return stream_form(columns, warps, tiles.stages)


class CudaRowOps(CudaAttention, RowOps):
    """A dense model's: it has the better attention too, so that a comparison is of the linears."""
