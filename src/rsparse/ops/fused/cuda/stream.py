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

FILES = ("primitives.cuh", "norm.cuh", "stream.cu")  # each may use those before it
ACTS = {None: 0, "silu": 1, "gelu_tanh": 2}  # as in stream.cu
Z_PARTS = 4
VECTOR = 8  # numbers of 16 bits that a thread reads at once
ENTRY = 4  # bytes of a kept channel in the list
OTHER_WORDS = 16  # of shared memory that a warp has beside its sums of a tile: counts by vector, and of x²
RESERVED = 1 << 10  # bytes of it that a block cannot have
MOST_CHANNELS = 1 << 16  # a channel has 16 bits of its entry
TYPES = (*(POINTER,) * 12, LONG, LONG, *(INT,) * 7, FLOAT)


def covers(group: Group, tiles: Tiles, *, paired: bool = False) -> bool:
    """Whether the kernel can run the group with these settings: its tiles end where sections do, and loads are aligned.

    `paired`: with an activation between its halves, gate and up.
    """
    weight = group.weight
    if group.dense or weight.dtype not in (torch.bfloat16, torch.float16) or len(group.sections) > 3:
        return False
    if group.in_features % VECTOR or group.rank % VECTOR:
        return False
    lists = _lists(group.sections, paired=paired)
    if group.in_features > _most_channels(weight.device, 4 * tiles.warps * (tiles.block_n + OTHER_WORDS), lists):
        return False
    if not fits(group, tiles.block_n, paired=paired):
        return False
    if group.V is not None and not group.V.is_contiguous():
        return False
    factors = (each for each in (weight, group.U, group.V) if each is not None)
    return all(
        each.stride(1) == 1 and each.stride(0) % VECTOR == 0 and each.data_ptr() % 16 == 0 and each.dtype == weight.dtype
        for each in factors
    )


def fits(group: Group, tile: int, *, paired: bool = False) -> bool:
    """Whether tiles of so many columns end where sections do; those of a pair have a half of gate and one of up."""
    ends = {section.stop for section in group.sections}
    if not paired:
        return all(end % tile == 0 for end in ends)
    half = group.out_features // 2
    return tile % (2 * VECTOR) == 0 and half % (tile // 2) == 0 and ends <= {half, 2 * half}


def stream(
    x: Tensor,
    group: Group,
    sections: tuple[Section, ...],
    tiles: Tiles,
    workspace: Workspace,
    *,
    norm: Norm | None = None,
    add: Tensor | None = None,
    act: str | None = None,
) -> Tensor:
    """y [1, out] of x [1, in], of RMSNorm(x) with `norm`; with `act` act(gate)·up [1, out/2] of gate|up, each rounded.

    `sections` are the group's, or with neighbours merged that share a mask. tiles: block_n columns and `warps` a block,
    `stages` loads of a thread in flight. add is like y.
    """
    columns, out, rank = group.in_features, group.out_features, group.rank
    macros = constants(
        columns, tiles, 0 if norm is None else 2 if norm.plus_one else 1, ACTS[act], _lists(sections, paired=act is not None),
        len(sections), scaled=group.channel_scale is not None, low_rank=rank > 0, half=x.dtype == torch.float16,
    )  # fmt: skip
    x, normed = aligned(x), None if norm is None else aligned(norm.weight)
    y = x.new_empty(1, out if act is None else out // 2)
    add = None if add is None else add.contiguous()
    starts = [section.start for section in sections[1:]] + [0, 0]
    if act is not None:
        starts[0] = out // 2
    masks = [section.mask for section in sections] + [0, 0]
    z_tiles = -(-rank // tiles.block_n)
    z = workspace.floats("z", Z_PARTS * len(sections) * rank) if rank else None
    values = (
        *map(pointer, (x, normed, group.channel_scale, group.threshold, group.weight, group.V, group.U, group.bias, add, y, z,
                       workspace.counters(2) if rank else None)),
        group.weight.stride(0), 0 if group.U is None else group.U.stride(0), rank, z_tiles, *starts[:2], *masks[:3],
        0.0 if norm is None else norm.eps,
    )  # fmt: skip
    kernel = _kernel(x.device, tuple(macros.items()))
    kernel.launch(out // tiles.block_n + len(sections) * z_tiles * Z_PARTS, values, TYPES, x.device)
    return y


def constants(
    columns: int, tiles: Tiles, norm: int, act: int, lists: int, sections: int, *, scaled: bool, low_rank: bool, half: bool,
) -> dict[str, int]:  # fmt: skip
    """stream.cu's macros."""
    return {
        "COLUMNS": columns, "TILE": tiles.block_n, "WARPS": tiles.warps, "LOADS": tiles.stages, "NORM": norm, "ACT": act,
        "LISTS": lists, "SECTIONS": sections, "SCALED": int(scaled), "LOW_RANK": int(low_rank), "Z_PARTS": Z_PARTS,
        "FLOAT16": int(half),
    }  # fmt: skip


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where loads of 16 bytes would miss."""
    fits = tensor.is_contiguous() and tensor.data_ptr() % 16 == 0
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)


def _lists(sections: tuple[Section, ...], *, paired: bool) -> int:
    """Lists of channels that a block makes: gate and up with a mask each need one each."""
    return len({section.mask for section in sections}) if paired else 1


@functools.cache
def _most_channels(device: torch.device, taken: int, lists: int) -> int:
    """Whose entries have room beside `taken` bytes of a block's shared memory, and in 16 bits."""
    if device.type != "cuda":
        return MOST_CHANNELS - 1
    properties: Any = torch.cuda.get_device_properties(device)
    room: int = properties.shared_memory_per_block_optin
    return min(MOST_CHANNELS - 1, (room - taken - RESERVED) // (ENTRY * lists))


@functools.cache
def _kernel(device: torch.device, macros: tuple[tuple[str, int], ...]) -> Kernel:
    known = dict(macros)
    cubin = compiled(source(*FILES), known, arch_of(device))
    return load(cubin, "stream", 32 * known["WARPS"], ENTRY * known["COLUMNS"] * known["LISTS"], device)
