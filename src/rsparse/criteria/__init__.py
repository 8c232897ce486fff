"""Criteria: one a file, found by its name. Each gives the static scale c [in] of the score |x_j|·c_j."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol

from torch import Tensor

from rsparse.errors import RSparseError


class Criterion(Protocol):
    """The function `channel_scale` of a criterion's file."""

    def __call__(self, weight: Tensor, residual: Tensor, rank: int) -> Tensor | None:
        """c [in] in fp32, or None for ones. weight W and residual R = W − U Vᵀ are [out, in]."""


def names() -> list[str]:
    """Criteria that have a file here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check(name: str) -> None:
    """Raises RSparseError for a criterion without a file."""
    if name not in names():
        raise RSparseError(f"criterion {name!r} is unknown; choose one of {', '.join(names())}")


def channel_scale(name: str, weight: Tensor, residual: Tensor, rank: int) -> Tensor | None:
    """c of criterion `name`: see Criterion."""
    check(name)
    criterion: Criterion = importlib.import_module(f"{__name__}.{name}").channel_scale
    return criterion(weight, residual, rank)
