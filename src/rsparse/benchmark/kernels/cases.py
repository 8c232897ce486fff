"""What a kernel bench measures: the units of a published shape's block, at a sparsity, with and without low-rank factors."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rsparse.benchmark.decode.random_sparse import RANK_RHO
from rsparse.benchmark.shapes import SHAPES
from rsparse.errors import RSparseError
from rsparse.models import spec_for
from rsparse.models.layout import sites
from rsparse.ops.fused.types import ROWS
from rsparse.recipe import UnitRecipe
from rsparse.runtime.fused.coverage import ACTIVATIONS

MODELS = ("llama-2-7b", "llama-3-8b", "mistral-7b", "gemma-7b", "qwen2.5-7b")
UNITS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("qkv",), "o": ("o",), "gate_up": ("gate_up",), "down": ("down",), "mlp": ("gate_up", "down"),
}  # fmt: skip
RANKS = ("none", "recipe")  # rank 0, or the rank that rho RANK_RHO buys of the unit's budget
DENSE = ("cublas", "rows", "channels")  # the best of them is what a speed-up is over
ALONE = "cublas_alone"  # F.linear and nothing else: less than a decode step must do
MOST = 0.95  # of what is sparser, weights beyond the caches would take tens of GB


@dataclass(frozen=True)
class Linears:
    """The linears that read one input: [out, in] of each, and whether they have biases."""

    name: str
    in_features: int
    outs: tuple[int, ...]
    biased: bool

    @property
    def out_features(self) -> int:
        return sum(self.outs)

    @property
    def size(self) -> int:
        return self.in_features * self.out_features

    def budget(self, sparsity: float, ranks: str) -> Budget:
        """Kept channels and rank at `sparsity`, what is always read paid from the same bytes (design §2)."""
        names = {f"{self.name}.{place}": out for place, out in enumerate(self.outs)}
        rho = 1.0 if ranks == "none" else RANK_RHO
        unit = UnitRecipe.uniform(names, self.in_features, sparsity, rho, stacked=True)
        return Budget(max(1, round(unit.kept_share * self.in_features)), unit.ranks[0])


@dataclass(frozen=True)
class Budget:
    """Input channels that a row keeps, and the rank of the factors over all linears of the input."""

    kept: int
    rank: int


@dataclass(frozen=True)
class Block:
    """A block's linears by name of their input, and what is computed before them."""

    model: str
    linears: Mapping[str, Linears]
    act: str
    eps: float
    plus_one: bool


@functools.cache
def block_of(model: str) -> Block:
    """The block of shape `model`, read off a model of one block without storage."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.for_model(**{**SHAPES[model], "num_hidden_layers": 1})
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    decode = spec_for(config).decode
    assert decode is not None  # every shape here is of an architecture that has one
    linears = {}
    for site in sites(made)[0]:
        name = site.name.rpartition(".")[2]
        linears[name] = Linears(name, site.in_features, tuple(site.shapes.values()), site.first.bias is not None)
    return Block(model, linears, ACTIVATIONS[getattr(config, decode.activation)], config.rms_norm_eps, decode.norm_plus_one)


@dataclass(frozen=True)
class Case:
    """One unit of a model at a sparsity, for `batch` rows: all its paths are measured in turn."""

    model: str
    unit: str
    sparsity: float
    batch: int = 1

    @property
    def linears(self) -> tuple[Linears, ...]:
        found = block_of(self.model).linears
        return tuple(found[name] for name in UNITS[self.unit])

    @property
    def label(self) -> str:
        rows = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{self.model} {self.unit} {self.sparsity:.0%}{rows}"


def ranks_at(sparsity: float, ranks: Sequence[str]) -> list[str]:
    """Those of `ranks` that differ at a level: with nothing dropped there is no low rank."""
    return [name for name in ranks if sparsity > 0] or ["none"]


@dataclass(frozen=True)
class Plan:
    """What to measure. Raises RSparseError for values out of range and for one named twice."""

    models: Sequence[str] = MODELS
    units: Sequence[str] = tuple(UNITS)
    levels: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
    ranks: Sequence[str] = RANKS
    batch: int = 1

    def __post_init__(self) -> None:
        known = {"models": tuple(SHAPES), "units": tuple(UNITS), "ranks": RANKS}
        for what in ("models", "units", "levels", "ranks"):
            found = list(getattr(self, what))
            if not found:
                raise RSparseError(f"--{what} names nothing")
            if (twice := next((each for each in found if found.count(each) > 1), None)) is not None:
                raise RSparseError(f"--{what} names {twice} twice")
            if unknown := next((each for each in found if what in known and each not in known[what]), None):
                raise RSparseError(f"--{what} {unknown!r} is unknown; choose from {', '.join(known[what])}")
        if wrong := next((level for level in self.levels if not 0 <= level <= MOST), None):
            raise RSparseError(f"--levels must be from 0 to {MOST:g}, got {wrong:g}")
        if not 1 <= self.batch <= ROWS:
            raise RSparseError(f"--batch must be from 1 to {ROWS}, got {self.batch}")

    def cases(self, model: str) -> Iterator[Case]:
        """A model's cases, unit by unit."""
        for unit in self.units:
            for level in self.levels:
                yield Case(model, unit, level, self.batch)
