"""Where a model's blocks, linears and input groups are: architectures as data."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from rsparse.errors import RSparseError
from rsparse.models import architectures
from rsparse.models.spec import ArchSpec, DecodeSpec, InputGroup
from rsparse.models.unsupported import REASONS

__all__ = ["ArchSpec", "DecodeSpec", "InputGroup", "spec_for", "supported_model_types"]


def supported_model_types() -> list[str]:
    """Model types that have a file here."""
    return sorted(module.name for module in pkgutil.iter_modules(architectures.__path__))


def spec_for(config: Any) -> ArchSpec:
    """The ArchSpec of a transformers config.

    Raises RSparseError, by name and with the reason, for encoder-decoders, mixtures of experts, fused
    weights, and model types without a file.
    """
    model_type = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise RSparseError(f"{model_type} is an encoder-decoder; rsparse sparsifies decoder-only models")
    if any(getattr(config, name, None) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        raise RSparseError(f"{model_type} is a mixture of experts; rsparse sparsifies dense decoders only")
    if model_type in REASONS:
        raise RSparseError(f"{model_type} is not supported: {REASONS[model_type]}")
    if model_type not in supported_model_types():
        raise RSparseError(
            f"architecture {model_type!r} has no description here; add src/rsparse/models/architectures/{model_type}.py "
            f"with an ArchSpec (llama.py is an example). Known: {', '.join(supported_model_types())}"
        )
    spec: ArchSpec = importlib.import_module(f"{architectures.__name__}.{model_type}").SPEC
    return spec
