"""Tile settings of the kernels, by GPU and shape: measured ones where there are any, else a rule."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

TUNED = Path(__file__).parent / "tuned"


@dataclass(frozen=True)
class Tiles:
    """One program's tile: block_n outputs by block_k channels at a time, `split` programs over the channels.

    warps a program, stages of loads in flight. head (a weight [out, in]) has split 1; so have stream and paired
    (cuda/stream.cu, a linear and gate|up with its activation), whose block_k is what their warps read at once.
    """

    block_n: int
    block_k: int
    split: int
    warps: int
    stages: int


def key(kind: str, columns: int, out: int) -> str:
    """Name of a shape in a file of settings."""
    return f"{kind} {columns} {out}"


def file_name(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") + ".json"


def cache_folder() -> Path:
    """Where settings that this machine measured itself are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rsparse" / "tuned"


def read(path: Path) -> dict[str, Tiles]:
    """Settings by shape; empty where there is no such file or it is damaged, since they can be measured again."""
    return {shape: Tiles(**entry["tiles"]) for shape, entry in _entries(path).items()}


def _entries(path: Path) -> dict[str, Any]:
    """Tiles and µs by shape as the file has them; empty where it is not whole."""
    try:
        shapes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["shapes"]
        for entry in shapes.values():
            Tiles(**entry["tiles"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return shapes


def document(
    gpu: str, measured: Mapping[str, Any], shapes: Mapping[str, tuple[Tiles, float]], before: Path | None = None
) -> dict[str, Any]:
    """What a file of settings holds: the GPU, how it was measured the last time, and tiles with their µs by shape; those of the
    file `before` too, where it is there and whole."""
    found = {} if before is None else _entries(before)
    found |= {shape: {"tiles": asdict(tiles), "us": round(us, 2)} for shape, (tiles, us) in shapes.items()}
    return {"gpu": gpu, "measured": dict(measured), "shapes": dict(sorted(found.items()))}


@functools.cache
def known(gpu: str) -> dict[str, Tiles]:
    """Settings of a GPU, this machine's own over the package's."""
    return {**read(TUNED / file_name(gpu)), **read(cache_folder() / file_name(gpu))}


def gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def tiles_for(gpu: str, kind: str, columns: int, out: int) -> Tiles:
    """Settings of the shape, of the nearest measured one in bytes and form, or of a rule where the GPU has none."""
    found = known(gpu)
    exact = found.get(key(kind, columns, out))
    if exact is not None:
        return exact
    near = []
    for shape, tiles in found.items():
        name, *size = shape.split()
        if name == kind:
            near.append((abs(math.log(columns / int(size[0]))) + abs(math.log(out / int(size[1]))), shape, tiles))
    if near:
        return min(near, key=lambda each: each[:2])[2]
    return default(kind, columns, out)


def stream_form(block_n: int, warps: int, loads: int) -> Tiles:
    """Settings of cuda/stream.cu: `loads` of 16 bytes of each thread in flight."""
    return Tiles(block_n, 256 * warps // block_n, 1, warps, loads)


def channels_of(warps: int) -> int:
    """The widest input that cuda/stream.cu reads well with so many warps: 8 vectors a thread. With 14 it spills registers."""
    return 8 * 256 * warps


def default(kind: str, columns: int, out: int) -> Tiles:
    """What a first sketch found best on an H100 (design of the kernels), for shapes and GPUs that nobody measured."""
    if kind == "head":
        return Tiles(16, 512, 1, 4, 3)
    if kind == "paired":
        return stream_form(128, 16, 4)
    if kind == "stream":
        return stream_form(64, 8, 8) if out >= 2 * columns else stream_form(32, 16, 4)
    if kind == "rows":  # a matrix product; its parts are of 16 rows each, so few of them
        return Tiles(128, 64, max(1, min(8, columns // 128, round(256 / math.ceil(out / 128)))), 4, 3)
    wide = out >= 2 * columns
    split = max(1, min(16, columns // 128))
    return Tiles(512, 16, split, 4, 2) if wide else Tiles(256, 32, split, 4, 2)
