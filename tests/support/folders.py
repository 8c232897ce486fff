"""Tiny models as folders on disk, and what is in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rsparse import sparsify
from tests.support.models import tiny_model, tiny_tokenizer
from tests.support.recipes import calibration_of, uniform


def sparse_model(model_type: str, rho: float = 0.6, sparsity: float = 0.5, **layout: Any) -> Any:
    """A new fp32 sparse `tiny_model(model_type)`; `layout` as for `uniform`."""
    model = tiny_model(model_type)
    return sparsify(model, uniform(model, sparsity, rho, **layout), calibration_of(model_type))


def dense_folder(folder: Path, model_type: str = "llama", **overrides: Any) -> Path:
    """`tiny_model(model_type)` and its tokenizer, saved by transformers."""
    tiny_model(model_type, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def edit_config(folder: Path, **changes: Any) -> None:
    """Replace keys of config.json; a dict is merged into the one that is there."""
    config = config_of(folder)
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


def tensors_of(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Tensors by file and name."""
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by relative path, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
