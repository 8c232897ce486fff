"""What a table is: a file in `reproduce.tables` with a TABLE, found by its name. Data alone: a help text reads it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

from rsparse.errors import RSparseError

LEVELS = (0.4, 0.5, 0.6, 0.7)
# The paper's own method is a recipe that its search has found; the released code's criterion and plain SVD are its defaults.
PAPER_METHOD = "searched"
POLICIES = "last_fraction:0.1,all"  # the paper's own, and every token


@dataclass(frozen=True)
class Variant:
    """How rows depart from the folder's protocol: `windows` of calibration text; weights of `weight_bits` bits; tasks that
    generate; recipes from searches that are kept. `name` is their subfolder, empty for the folder itself; `title` says it in a
    table."""

    name: str = ""
    title: str = ""
    windows: int | None = None
    weight_bits: int | None = None
    generates: bool = False
    searches: bool = False

    @property
    def own_dense(self) -> bool:
        """Whether its dense model has figures of its own; else they are the folder's."""
        return self.generates or self.weight_bits is not None


BASE = Variant()


@dataclass(frozen=True)
class Row:
    """A method, as `MethodSpec.parse` reads it, at `levels`, in each of `variants`."""

    method: str
    levels: tuple[float, ...]
    variants: tuple[Variant, ...] = (BASE,)


@dataclass(frozen=True)
class Order:
    """The paper's claim that `better` is above `worse` at a level, where it publishes no figures for it."""

    better: str
    worse: str


@dataclass(frozen=True)
class Choice:
    """What a caller may choose in tables that vary a number. `searched`: options of the search, in place of the paper's."""

    populations: tuple[int, ...]
    samples: tuple[int, ...]
    searched: tuple[tuple[str, str], ...] = ()


PAPER = Choice((8, 16, 32, 128), (1, 4, 16, 64))


@dataclass(frozen=True)
class Table:
    """`tasks`, `texts`: what its cells are measured on. `varies`: options of the search that its rows set themselves.
    `published`: sets of `rsparse.published`. `note`: what a reader must know of it."""

    title: str
    rows: Callable[[Choice], list[Row]]
    tasks: bool = False
    texts: bool = False
    varies: tuple[str, ...] = ()
    published: tuple[str, ...] = ()
    orders: tuple[Order, ...] = field(default=())
    note: str = ""


def names() -> list[str]:
    """Tables that have a file, as a command line has them."""
    from rsparse.reproduce import tables

    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(tables.__path__))


def load(name: str) -> Table:
    """Raises RSparseError for a table without a file."""
    if name not in names():
        raise RSparseError(f"table {name!r} is unknown; choose among {', '.join(names())}, or all")
    module = importlib.import_module(f"rsparse.reproduce.tables.{name.replace('-', '_')}")
    table: Table = module.TABLE
    return table
