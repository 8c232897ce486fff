"""Which neurons a sparse row keeps: one rule a file, found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from rsparse.errors import RSparseError
from rsparse.gated.plan import GatedPlan
from rsparse.row_policy import RowPolicy


class Neurons(NamedTuple):
    """What an MLP makes of its input, each [batch, tokens, neurons]: gate x, act(gate x), up x, and act(gate x)·(up x)."""

    gate: Tensor
    active: Tensor
    up: Tensor
    hidden: Tensor


class Rule(Protocol):
    """The class `Rule` of a rule's file; one object for each MLP."""

    spares: tuple[str, ...]  # of gate, up and down: those of which a dropped neuron's weights are not read
    solves: bool  # whether it has a threshold, to be solved on calibration text
    watches: bool  # whether it must also see what is dense
    whole_is_dense: bool  # whether keeping all neurons is the dense MLP

    def __init__(self, plan: GatedPlan, neurons: int, threshold: float | None) -> None: ...

    def solve(self, found: Neurons) -> float:
        """Set, and return, the threshold that keeps the plan's share of neurons on these rows [rows, neurons]."""

    def watch(self, found: Neurons, rows: RowPolicy) -> None:
        """Look at a call's rows before any of them is changed."""

    def apply(self, found: Neurons, rows: RowPolicy) -> tuple[Tensor, Tensor]:
        """(what goes into down, which neurons are kept: bool) of all rows as though they were sparse; down's input is
        [batch, tokens, neurons], and the mask can be expanded to that."""


def names() -> list[str]:
    """Rules that have a file here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def rule_class(name: str) -> Any:
    """Raises RSparseError for a rule without a file."""
    if name not in names():
        raise RSparseError(f"rule {name!r} is unknown; choose one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").Rule


def count(share: float, of: int) -> int:
    """Nearest whole number to a share."""
    return min(of, max(0, round(share * of)))
