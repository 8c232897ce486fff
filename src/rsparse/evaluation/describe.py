"""What a record says of a model and of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rsparse.fingerprint import weights_sha
from rsparse.sparse_model import is_sparse, state

FILES = (".jsonl", ".txt")


def short(name: str) -> str:
    """A model or text by name, without this machine's folders; a file's stays the same once it is gone."""
    path = Path(name)
    return path.name if path.suffix in FILES or path.exists() else name


def backend(model: Any) -> str:
    """What ran the linears."""
    return state(model).backend if is_sparse(model) else "dense"


def model_config(model: Any, name: str) -> dict[str, Any]:
    """The record's config fields of a model loaded as `name`."""
    loaded = {"model": short(name), "weights_sha": weights_sha(model), "dtype": str(model.dtype).removeprefix("torch.")}
    return loaded | sparse_config(model)


def sparse_config(model: Any) -> dict[str, Any]:
    """The record's config fields that a sparse model knows of itself."""
    return state(model).config() if is_sparse(model) else {"method": "dense", "sparsity": 0.0}
