"""One group's linears for one row in one launch: stream.cu, with what it does not cover told apart."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from rsparse.ops.fused.cuda.compiler import FLOAT, INT, LONG, POINTER, Kernel, arch_of, compiled, load, pointer, source
from rsparse.ops.fused.settings import Tiles
from rsparse.ops.fused.types import Group, Norm, Section
from rsparse.ops.fused.workspace import Workspace

KINDS = {"plain": 0, "norm": 1, "silu": 3, "gelu_tanh": 4}  # as in stream.cu; a norm with plus_one is 2
NORM_PLUS_ONE = 2
Z_PARTS = 4
VECTOR = 8  # numbers of 16 bits that a thread reads at once
ENTRY = 4  # bytes of a kept channel in the list
OTHER_WORDS = 16  # of shared memory that a warp has beside its sums of a tile: counts by vector, and of x²
RESERVED = 1 << 10  # bytes of it that a block cannot have
MOST_CHANNELS = 1 << 16  # a channel has 16 bits of its entry
TYPES = (*(POINTER,) * 12, LONG, LONG, *(INT,) * 7, FLOAT)


def covers(group: Group, tiles: Tiles) -> bool:
    """Whether the kernel can run the group with these settings: its tiles end where sections do, and loads are aligned."""
    weight = group.weight
    if group.dense or weight.dtype not in (torch.bfloat16, torch.float16) or len(group.sections) > 3:
        return False
    if group.in_features % VECTOR or group.rank % VECTOR:
        return False
    if group.in_features > _most_channels(weight.device, 4 * tiles.warps * (tiles.block_n + OTHER_WORDS)):
        return False
    if any(section.stop % tiles.block_n for section in group.sections):
        return False
    if group.V is not None and not group.V.is_contiguous():
        return False
    factors = (each for each in (weight, group.U, group.V) if each is not None)
    return all(
        each.stride(1) == 1 and each.stride(0) % VECTOR == 0 and each.data_ptr() % 16 == 0 and each.dtype == weight.dtype
        for each in factors
    )


def stream(
    x: Tensor,
    group: Group,
    sections: tuple[Section, ...],
    tiles: Tiles,
    workspace: Workspace,
    *,
    kind: str = "plain",
    norm: Norm | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """y [1, out] of x [1, in], or [1, 2·in] where `kind` is an activation; see types.FusedOps.

    `sections` are the group's, or with neighbours merged that share a mask. tiles: block_n columns and `warps` a block,
    `stages` loads of a thread in flight.
    """
    columns, out, rank = group.in_features, group.out_features, group.rank
    kernel = _kernel(
        x.device, columns, tiles.block_n, tiles.warps, tiles.stages,
        NORM_PLUS_ONE if norm is not None and norm.plus_one else KINDS[kind],
        len(sections), group.channel_scale is not None, rank > 0, x.dtype == torch.float16,
    )  # fmt: skip
    x, normed = aligned(x), None if norm is None else aligned(norm.weight)
    y = x.new_empty(1, out)
    add = None if add is None else add.contiguous()
    starts = [section.start for section in sections[1:]] + [0, 0]
    masks = [section.mask for section in sections] + [0, 0]
    z_tiles = -(-rank // tiles.block_n)
    z = workspace.floats("z", Z_PARTS * len(sections) * rank) if rank else None
    values = (
        *map(pointer, (x, normed, group.channel_scale, group.threshold, group.weight, group.V, group.U, group.bias, add, y, z,
                       workspace.counters(2) if rank else None)),
        group.weight.stride(0), 0 if group.U is None else group.U.stride(0), rank, z_tiles, *starts[:2], *masks[:3],
        0.0 if norm is None else norm.eps,
    )  # fmt: skip
    kernel.launch(out // tiles.block_n + len(sections) * z_tiles * Z_PARTS, values, TYPES, x.device)
    return y


def constants(
    columns: int, tile: int, warps: int, loads: int, kind: int, sections: int, scaled: bool, low_rank: bool, half: bool,
) -> dict[str, int]:  # fmt: skip
    """stream.cu's macros."""
    return {
        "COLUMNS": columns, "TILE": tile, "WARPS": warps, "LOADS": loads, "KIND": kind, "SECTIONS": sections,
        "SCALED": int(scaled), "LOW_RANK": int(low_rank), "Z_PARTS": Z_PARTS, "FLOAT16": int(half),
    }  # fmt: skip


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where loads of 16 bytes would miss."""
    fits = tensor.is_contiguous() and tensor.data_ptr() % 16 == 0
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)


@functools.cache
def _most_channels(device: torch.device, taken: int) -> int:
    """Whose entries have room beside `taken` bytes of a block's shared memory, and in 16 bits."""
    if device.type != "cuda":
        return MOST_CHANNELS - 1
    properties: Any = torch.cuda.get_device_properties(device)
    room: int = properties.shared_memory_per_block_optin
    return min(MOST_CHANNELS - 1, (room - taken - RESERVED) // ENTRY)


@functools.cache
def _kernel(device: torch.device, columns: int, tile: int, warps: int, *rest: int | bool) -> Kernel:
    code, macros = source("primitives.cuh", "stream.cu"), constants(columns, tile, warps, *rest)  # type: ignore[arg-type]
    cubin = compiled(code, macros, arch_of(device))
    return load(cubin, "stream", 32 * warps, ENTRY * columns, device)
