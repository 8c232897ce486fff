"""TritonOps whose sparse linears of one row are the kernel of stream.cu, where it covers them."""

from __future__ import annotations

import torch
from torch import Tensor

from rsparse.ops.fused.cuda import compiler
from rsparse.ops.fused.cuda.stream import covers, stream
from rsparse.ops.fused.settings import Tiles, channels_of, stream_form, tiles_for
from rsparse.ops.fused.triton_ops import TritonOps, merged
from rsparse.ops.fused.types import Group, Norm

NARROWEST = 16  # columns of a tile: a row's piece is then one sector of 32 bytes


class CudaOps(TritonOps):
    """One launch for a linear in place of two, and no parts to add up: on an H100 a Llama-2-7B's linears take 86 µs a block
    at 50 %, 110 µs by select and gather."""

    def _project(self, x: Tensor, group: Group, add: Tensor | None, kind: str, norm: Norm | None = None) -> Tensor:
        if x.shape[0] == 1:
            tiles = self.stream_tiles(group)
            if covers(group, tiles):
                return stream(x, group, merged(group), tiles, self.workspace, kind=kind, norm=norm, add=add)
        return super()._project(x, group, add, kind, norm)

    def stream_tiles(self, group: Group) -> Tiles:
        """Settings for the group's shape: narrower where a tile would pass a section's end, of more warps where a thread would
        hold too much of the input."""
        tiles = tiles_for(self.gpu, "stream", *group.weight.shape)
        columns, warps = tiles.block_n, tiles.warps
        while columns > NARROWEST and any(section.stop % columns for section in group.sections):
            columns //= 2
        while group.in_features > channels_of(warps) and warps < 32:
            warps *= 2
        return stream_form(columns, warps, tiles.stages)


def available(device: torch.device) -> bool:
    """Whether stream.cu can be compiled for `device` and loaded there."""
    return compiler.refusal(device) is None
