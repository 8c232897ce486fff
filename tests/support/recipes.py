"""Recipes and calibrations of tiny models, made without rsparse.methods."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from rsparse.calibration import Calibration, calibrate
from rsparse.conversion import sparsify
from rsparse.models.layout import unit_shapes
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.sparse_model import replace_units, state, unit_members
from tests.support.models import text_file, tiny_model, tiny_tokenizer

SEQ_LEN = 24


def uniform(
    model: Any,
    sparsity: float = 0.5,
    rho: float = 1.0,
    *,
    grouping: str = "linear",
    stacked: bool = False,
    criterion: str = "magnitude",
    fit: str = "svd",
) -> Recipe:
    """Every unit of `model` at (sparsity, rho)."""
    units = {
        name: UnitRecipe.uniform(linears, in_features, sparsity, rho, criterion=criterion, stacked=stacked)
        for name, (linears, in_features) in unit_shapes(model, grouping).items()
    }
    return Recipe(model.config.model_type, units, "rsparse", grouping, fit)


@functools.cache
def calibration_of(model_type: str) -> Calibration:
    """A calibration of `tiny_model(model_type)`, made once a session; it goes with the process."""
    with tempfile.TemporaryDirectory() as folder:
        text = text_file(Path(folder), 1200, seed=3)
        return calibrate(tiny_model(model_type), tiny_tokenizer(), str(text), tokens=64 * SEQ_LEN, seq_len=SEQ_LEN, rows=400)


# (grouping, stacked): the three ways of units and factors
LAYOUTS = [("linear", False), ("group", True), ("group", False)]
FITS = ["svd", "dropped"]
TYPES = ["llama", "qwen2", "gemma3_text"]


@functools.cache
def sparse_of(
    model_type: str,
    grouping: str = "group",
    stacked: bool = True,
    fit: str = "svd",
    rho: float = 0.6,
    criterion: str = "paper",
    sparsity: float = 0.5,
) -> Any:
    """`tiny_model(model_type)` in fp64, sparse and settled on all calibration windows. Shared: leave it as it is.

    fp64, since two ways to the same sum then differ by 1e-16, and no score meets its threshold by rounding.
    """
    model = tiny_model(model_type, dtype=torch.float64)
    recipe = uniform(model, sparsity, rho, grouping=grouping, stacked=stacked, criterion=criterion, fit=fit)
    return sparsify(model, recipe, calibration_of(model_type), settle_tokens=1 << 20)


def with_vectors(model: Any, seed: int = 0) -> Any:
    """The sparse `model`, with a random vector in each of its sparse linears, as a fit would leave it; thresholds stay."""
    generator = torch.Generator().manual_seed(seed)
    members = unit_members(model)
    for each in members.values():
        for member in each:
            member.compensation = (0.3 * torch.randn(member.out_features, generator=generator)).to(member.weight.dtype)
    units = {
        name: dataclasses.replace(unit, compensated=True) if name in members else unit
        for name, unit in state(model).recipe.units.items()
    }
    replace_units(model, units, compensation="a text: vectors")
    return model
