"""Which methods there are, and what they take."""

from __future__ import annotations

import inspect
from typing import Any

from rsparse.errors import RSparseError
from rsparse.methods._options import checked_options, parameters
from rsparse.methods._sources import files, left_out, load, plugins

__all__ = ["check", "load", "makes_recipe", "names", "observes", "resumes", "seeded"]


def names() -> list[str]:
    """Methods that have a file here, and those of other packages."""
    return sorted({*files(), *plugins()})


def check(method: str, sparsity: float | None = None, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """`options` as `method` takes them. Raises RSparseError for a method, level, option or value that no model would take."""
    if method not in names():
        lost = "".join(f"; {line}" for line in left_out())
        raise RSparseError(f"method {method!r} is unknown; choose one of {', '.join(names())}{lost}")
    if sparsity is not None and not 0 <= sparsity < 1:
        raise RSparseError(f"sparsity must be in [0, 1), got {sparsity}")
    return checked_options(method, options or {})


def seeded(method: str, seed: int) -> dict[str, Any]:
    """`seed` as an option, where `method` draws at random."""
    return {"seed": seed} if "seed" in parameters(method) else {}


def observes(method: str) -> bool:
    """Whether `method` can look at activations, and so wants a calibration to make its recipe."""
    return "calibration" in parameters(method)


def resumes(method: str) -> bool:
    """Whether `method` can keep what it has measured in a file, and go on from there."""
    return "state_file" in parameters(method)


def makes_recipe(method: str) -> bool:
    """Whether what `method` makes is a recipe, which can be saved, compensated and run by kernels; else it is a GatedPlan."""
    returns = inspect.signature(load(method).prepare).return_annotation
    return getattr(returns, "__name__", returns) != "GatedPlan"
