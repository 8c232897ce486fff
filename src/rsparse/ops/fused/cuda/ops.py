"""TritonOps whose sparse linears of one row are the kernel of stream.cu, where it covers them."""

from __future__ import annotations

import torch
from torch import Tensor

from rsparse.ops.fused.cuda import compiler
from rsparse.ops.fused.cuda.stream import covers, stream
from rsparse.ops.fused.settings import Tiles, stream_form, tiles_for
from rsparse.ops.fused.triton_ops import TritonOps, merged
from rsparse.ops.fused.types import Group, Norm

NARROWEST = 16  # columns of a tile: a row's piece is then one sector of 32 bytes


class CudaOps(TritonOps):
    """One launch for a linear in place of two, and no parts to add up: on an H100 a Llama-2-7B's linears take 86 µs a block
    at 50 %, 110 µs by select and gather."""

    def project_with(
        self, tiles: Tiles, x: Tensor, group: Group, add: Tensor | None, kind: str, norm: Norm | None = None
    ) -> Tensor:
        if x.shape[0] == 1:
            streamed = self.stream_tiles(group)
            if covers(group, streamed):
                return self.stream_with(streamed, x, group, add, kind, norm)
        return super().project_with(tiles, x, group, add, kind, norm)

    def stream_tiles(self, group: Group) -> Tiles:
        """Settings for the group's shape, narrower where a tile would pass a section's end."""
        tiles = tiles_for(self.gpu, "stream", *group.weight.shape)
        while tiles.block_n > NARROWEST and any(section.stop % tiles.block_n for section in group.sections):
            tiles = stream_form(tiles.block_n // 2, tiles.warps, tiles.stages)
        return tiles

    def stream_with(
        self, tiles: Tiles, x: Tensor, group: Group, add: Tensor | None, kind: str, norm: Norm | None = None
    ) -> Tensor:
        """The kernel by settings of the caller's."""
        return stream(x, group, merged(group), tiles, self.workspace, kind=kind, norm=norm, add=add, overlap=False)


def available(device: torch.device) -> bool:
    """Whether stream.cu can be compiled for `device`, an Ampere or later, and loaded there."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) and compiler.refusal(device) is None
