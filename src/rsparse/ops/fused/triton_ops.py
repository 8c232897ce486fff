"""The ops of a decode step by Triton kernels: what types.FusedOps says, in few launches."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rsparse.ops.fused import attend as attention_kernel
from rsparse.ops.fused.gather import gather
from rsparse.ops.fused.launch import can_overlap
from rsparse.ops.fused.lists import Lists, linear_segments, segmented
from rsparse.ops.fused.matvec import matvec
from rsparse.ops.fused.norm import rms_norm
from rsparse.ops.fused.select import select
from rsparse.ops.fused.settings import Tiles, gpu_name, tiles_for
from rsparse.ops.fused.types import Attention, Cache, Group, Norm, Section
from rsparse.ops.fused.workspace import Workspace

# More rows go as m⊙x through every row of the weight: on an H100 at 50 % two rows already take longer by the channels that
# either keeps, for all groups but gate|up.
GATHER_ROWS = 1


class TritonOps:
    """Kernels of one stream, with its scratch memory. `overlap` False turns programmatic dependent launch off."""

    name = "triton"

    def __init__(self, device: torch.device, *, overlap: bool | None = None, gather_rows: int = GATHER_ROWS) -> None:
        self.device = device
        self.gpu = gpu_name(device)
        self.workspace = Workspace(device)
        self.overlap = can_overlap(device) if overlap is None else overlap
        self.gather_rows = gather_rows
        # Two programs a multiprocessor hide each other's waiting.
        self.programs = 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8

    def tiles(self, group: Group) -> Tiles:
        """Settings for the group's shape and one row."""
        return tiles_for(self.gpu, "dense" if group.dense else "gather", *group.weight.shape)

    def row_tiles(self, group: Group) -> Tiles:
        """Settings for several rows. A weight stored by output row has the same ones for any number."""
        if group.weight.stride(1) != 1:
            return self.tiles(group)
        return tiles_for(self.gpu, "rows", *group.weight.shape)

    def project(self, x: Tensor, group: Group, add: Tensor | None = None) -> Tensor:
        return self._project(x, group, add, "plain")

    def norm_project(self, x: Tensor, norm: Norm, group: Group, add: Tensor | None = None) -> Tensor:
        return self._project(x, group, add, "norm", norm)

    def act_project(self, gate_up: Tensor, act: str, group: Group, add: Tensor | None = None) -> Tensor:
        return self._project(gate_up, group, add, act)

    def mlp(self, x: Tensor, norm: Norm, gate_up: Group, act: str, down: Group, add: Tensor | None = None) -> Tensor:
        return self.act_project(self.norm_project(x, norm, gate_up), act, down, add)

    def attend(self, qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention) -> Tensor:
        return attention_kernel.attend(
            qkv, cache, cos_sin, attention, self.workspace, programs=self.programs, overlap=self.overlap
        )

    def attend_project(
        self, qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention, group: Group, add: Tensor | None = None
    ) -> Tensor:
        return self.project(self.attend(qkv, cache, cos_sin, attention), group, add)

    def norm(self, x: Tensor, norm: Norm, add: Tensor | None = None) -> Tensor:
        return rms_norm(x, norm, add, overlap=self.overlap)

    def head(self, x: Tensor, norm: Norm, lm_head: Tensor, softcap: float | None = None) -> Tensor:
        out, columns = lm_head.shape
        logits = torch.empty(x.shape[0], out, dtype=torch.float32, device=x.device)
        tiles = tiles_for(self.gpu, "head", columns, out)
        return matvec(self.norm(x, norm), lm_head, logits, tiles, softcap, overlap=self.overlap)

    def _project(self, x: Tensor, group: Group, add: Tensor | None, kind: str, norm: Norm | None = None) -> Tensor:
        tiles = self.tiles(group) if x.shape[0] == 1 else self.row_tiles(group)
        return self.project_with(tiles, x, group, add, kind, norm)

    def project_with(
        self, tiles: Tiles, x: Tensor, group: Group, add: Tensor | None, kind: str, norm: Norm | None = None
    ) -> Tensor:
        """`project`, `norm_project` (kind `norm`) or `act_project` (kind `silu`, `gelu_tanh`) by settings of the caller's."""
        rows = x.shape[0]
        lists = self._lists(x, group, tiles, compact=not group.dense and rows <= self.gather_rows)
        if group.dense and kind == "plain":
            lists = replace(lists, values=x.contiguous(), row_stride=group.in_features)
        else:
            threshold = group.threshold[:1] if group.dense else group.threshold
            masks = tuple(section.mask for section in group.sections)
            select(x, lists, threshold, group.channel_scale, group.V, masks, kind=kind, norm=norm, overlap=self.overlap)
        return gather(
            lists, group.weight, self.workspace, tiles, merged(group), group.U, group.bias, add, rows=rows, overlap=self.overlap
        )

    def _lists(self, x: Tensor, group: Group, tiles: Tiles, *, compact: bool) -> Lists:
        if compact:
            length, segments = segmented(group.in_features, tiles.split)
        else:  # gather splits as it likes
            length, segments = linear_segments(group.in_features)
        rows, masks = x.shape[0], 1 if group.dense else group.threshold.shape[0]
        take, room = self.workspace.take, masks * segments * length
        return Lists(
            values=take("values", rows * room, x.dtype),
            indices=take("indices", room, torch.int32) if compact else None,
            counts=take("counts", masks * segments, torch.int32) if compact else None,
            z=take("z", segments * rows * group.V.shape[1], torch.float32) if group.V is not None else None,
            columns=group.in_features,
            length=length,
            segments=segments,
            row_stride=segments * length,
            rank=group.rank,
            compact=compact,
        )


def merged(group: Group) -> tuple[Section, ...]:
    """The group's sections, neighbours that differ in nothing as one."""
    if group.dense:
        return (Section(0, group.out_features, 0),)
    if group.U is not None:
        return group.sections
    found: list[Section] = []
    for section in group.sections:
        if found and found[-1].mask == section.mask:
            found[-1] = Section(found[-1].start, section.stop, section.mask)
        else:
            found.append(section)
    return tuple(found)
