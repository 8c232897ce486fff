"""Which methods there are, and what they take."""

from __future__ import annotations

import pkgutil
from typing import Any

from rsparse import methods
from rsparse.errors import RSparseError
from rsparse.methods._options import checked_options, parameters


def names() -> list[str]:
    """Methods that have a file here, without an underscore before their name."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__) if not module.name.startswith("_"))


def check(method: str, sparsity: float | None = None, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """`options` as `method` takes them. Raises RSparseError for a method, level, option or value that no model would take."""
    if method not in names():
        raise RSparseError(f"method {method!r} is unknown; choose one of {', '.join(names())}")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise RSparseError(f"sparsity must be in [0, 1), got {sparsity}")
    return checked_options(method, options or {})


def seeded(method: str, seed: int) -> dict[str, Any]:
    """`seed` as an option, where `method` draws at random."""
    return {"seed": seed} if "seed" in parameters(method) else {}


def observes(method: str) -> bool:
    """Whether `method` can look at activations, and so wants a calibration to make its recipe."""
    return "calibration" in parameters(method)
