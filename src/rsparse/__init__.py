"""Rank-aware activation sparsity for Hugging Face decoders (R-Sparse, arXiv 2504.19449)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Calibration": "rsparse.calibration",
    "FitSettings": "rsparse.compensation",
    "RSparseConfig": "rsparse.checkpoint",
    "RSparseError": "rsparse.errors",
    "Recipe": "rsparse.recipe",
    "TokenPolicy": "rsparse.token_policy",
    "UnitRecipe": "rsparse.recipe",
    "calibrate": "rsparse.calibration",
    "compensate": "rsparse.compensation",
    "densify": "rsparse.sparse_model",
    "fit_windows": "rsparse.compensation",
    "from_pretrained": "rsparse.checkpoint",
    "make_recipe": "rsparse.methods",
    "save_pretrained": "rsparse.checkpoint",
    "sparsify": "rsparse.conversion",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `import rsparse` costs neither torch nor transformers."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rsparse' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
