"""Whether weight files are there and whole, told from their headers alone."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from rsparse.errors import RSparseError

INDEX_FILE = "model.safetensors.index.json"
LONE_FILE = "model.safetensors"


def check_shards(folder: Path) -> list[Path]:
    """The safetensors files that loading `folder` reads. Raises RSparseError where one is missing, damaged or cut short.

    transformers would load what is there and leave the rest random.
    """
    index, lone = folder / INDEX_FILE, folder / LONE_FILE
    if not index.is_file():
        shards = [lone] if lone.is_file() else []
    else:
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            shards = [folder / name for name in sorted(names)]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise RSparseError(f"{index} is damaged: {error}") from error
    for path in shards:
        if not path.is_file():
            raise RSparseError(f"checkpoint {folder} lacks its file {path.name}")
        _check_whole(path)
    return shards


def _check_whole(path: Path) -> None:
    """A safetensors file is 8 bytes of header length, a JSON header, and the bytes that the header describes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length <= size:
            try:
                header: dict[str, Any] = json.loads(file.read(length))
                ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
                length += max(ends, default=0)
            except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
                raise RSparseError(f"{path} is damaged: it has no safetensors header; copy or make it again") from error
    if 8 + length > size:
        raise RSparseError(f"{path} is cut short; copy or make it again")


def check_gguf(path: Path) -> None:
    """Raises RSparseError where `path` is no whole GGUF file. Takes a second for a large vocabulary, so: after a failure."""
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise RSparseError(f"{path} is not a GGUF file; copy or make it again")
    try:
        GGUFReader(path)
    except Exception as error:  # whatever a parser meets where the bytes end
        raise RSparseError(f"{path} is damaged or cut short; copy or make it again") from error
