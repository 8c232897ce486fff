"""Write a sparse model as a checkpoint folder, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from rsparse.atomic import check_target, new_folder, write_text
from rsparse.checkpoint.quantizer import RSparseConfig
from rsparse.errors import RSparseError
from rsparse.quiet import quiet_saving
from rsparse.shards import INDEX_FILE, LONE_FILE
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import is_sparse, recipe_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OWN_SHARD = "rsparse.safetensors"


def save_pretrained(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    overwrite: bool = False,
    max_shard_size: str = "5GB",
) -> Path:
    """Write `model` (sparse or dense), and its tokenizer, to `folder`. Returns the folder.

    W goes to `model-0000N-of-….safetensors` under the tensors' original names; U, V, channel_scale and
    compensation to `rsparse.safetensors`; the recipe to config.json. Raises RSparseError where `folder` exists and
    `overwrite` is False, and where the disk is full.
    """
    folder = Path(folder)
    check_target(folder, overwrite=overwrite)
    if is_sparse(model) and not recipe_state(model).recipe.settled:
        raise RSparseError("this model's thresholds are not solved; sparsify it with a calibration before saving")
    with new_folder(folder, overwrite=overwrite) as staging:
        _check_room(model, staging, folder)
        own = _own_tensors(model)
        _write_dense(model, staging, max_shard_size)
        if is_sparse(model):
            _add_own_shard(model, own, staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
    return folder


def _own_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """What rsparse adds, under the names of the linears; what a group shares, under its first one's."""
    return {
        f"{name}.{key}": tensor.contiguous()
        for name, module in model.named_modules()
        if isinstance(module, RSparseLinear)
        for key, tensor in module.state_dict().items()
        if key not in ("weight", "bias")
    }


def _write_dense(model: Any, staging: Path, max_shard_size: str) -> None:
    """transformers' own writer on the dense tensors: it knows of tied weights and renamed keys."""
    names = set(_own_tensors(model))
    hidden = {name: model.__dict__.pop(name) for name in ("hf_quantizer",) if name in model.__dict__}
    config = model.config.__dict__.pop("quantization_config", None)
    try:
        dense = {name: _plain(tensor) for name, tensor in model.state_dict().items() if name not in names}
        with quiet_saving():
            model.save_pretrained(staging, state_dict=dense, max_shard_size=max_shard_size)
    finally:
        model.__dict__.update(hidden)
        if config is not None:
            model.config.quantization_config = config


def _plain(tensor: Tensor) -> Tensor:
    """Kernels hold weights by input channel, and safetensors writes no such views; a second copy is for the CPU's memory."""
    return tensor if tensor.is_contiguous() else tensor.cpu().contiguous()


def _add_own_shard(model: PreTrainedModel, own: dict[str, Tensor], staging: Path) -> None:
    save_file(own, staging / OWN_SHARD, metadata={"format": "pt"})
    index = _index(staging)
    index["weight_map"].update(dict.fromkeys(own, OWN_SHARD))
    index["metadata"]["total_size"] = index["metadata"].get("total_size", 0) + sum(t.nbytes for t in own.values())
    write_text(staging / INDEX_FILE, json.dumps(index, indent=1, sort_keys=True) + "\n")
    path = staging / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] = RSparseConfig.of(model).to_dict()
    write_text(path, json.dumps(config, indent=1) + "\n")


def _index(staging: Path) -> dict[str, Any]:
    """The index of the dense shards; a lone model.safetensors becomes shard 1 of 1, or loaders would stop at it."""
    path = staging / INDEX_FILE
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    from safetensors import safe_open

    shard = "model-00001-of-00001.safetensors"
    os.rename(staging / LONE_FILE, staging / shard)
    with safe_open(staging / shard, framework="pt") as file:
        names = list(file.keys())
    return {"metadata": {"total_size": (staging / shard).stat().st_size}, "weight_map": dict.fromkeys(names, shard)}


def _check_room(model: PreTrainedModel, staging: Path, folder: Path) -> None:
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    needed, free = sum(tensors.values()), shutil.disk_usage(staging).free
    if needed > free:
        raise RSparseError(
            f"no room to write {folder}: it needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left"
        )
