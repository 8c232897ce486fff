"""Allocations of tiny models, their bytes, and a fitness that pulls levels far from where they start."""

from __future__ import annotations

import numpy as np

from rsparse.models.layout import unit_shapes
from rsparse.search.allocation import LEAST, MOST, Choice, allocate
from tests.support.recipes import SEQ_LEN, calibration_of

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WHOLE = {"grouping": "linear", "tokens": 4 * SEQ_LEN, "rounds": 2, "polish": 0, "criteria": ("column_norm",), "seed": 0}
STARTS = {
    "uniform": lambda count: np.full(count, 0.5),
    "at bounds": lambda count: np.resize([LEAST, MOST, 0.5, 0.4], count),
    "beyond bounds": lambda count: np.resize([0.0, 0.99, 0.0, 0.6], count),
    "nearly all": lambda count: np.resize([0.95, 0.95, 0.94, 0.95], count),
    "nearly nothing": lambda count: np.resize([0.02, 0.02, 0.05], count),
}


def kind(name):
    return name.rpartition(".")[2]


def sizes_of(model, grouping="linear"):
    return {name: sum(outs.values()) * size for name, (outs, size) in unit_shapes(model, grouping).items()}


def start_of(model, levels=0.5, grouping="linear"):
    """One level for all units, or an array."""
    names = list(unit_shapes(model, grouping))
    return {name: Choice(float(level)) for name, level in zip(names, np.broadcast_to(levels, len(names)), strict=True)}


def total(units, sizes):
    return sum(each.sparsity * sizes[name] for name, each in units.items())


def allocated(model, start=None, lowrank=True, **options):
    start = start_of(model, grouping=options.get("grouping", "linear")) if start is None else start
    return allocate(model, calibration_of(model.config.model_type), start, lowrank=lowrank, **(WHOLE | options))


def pulling(seed=0):
    """A bowl with its bottom far from any start, in which low rank is welcome everywhere."""
    random = np.random.default_rng(seed)
    targets, weights = random.choice([-0.3, 0.1, 1.2], 14), random.uniform(0.5, 2, 14)

    def value(units):
        levels = np.array([each.sparsity for each in units.values()])
        return float(1 + weights @ (levels - targets) ** 2) * np.mean([each.rho for each in units.values()])

    return value
