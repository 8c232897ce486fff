"""What a sparse model is asked to do, unit by unit: budgets, ranks, thresholds, and their JSON form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsparse.atomic import write_text
from rsparse.errors import RSparseError
from rsparse.schema import checked_keys

VERSION = 1
GROUPINGS = ("linear", "group")
FITS = ("svd", "dropped")


def lowrank_rank(sparsity: float, rho: float, out_features: int, in_features: int) -> int:
    """Rank that a share 1 − rho of the bytes kept at `sparsity` buys in an [out, in] weight (design §2)."""
    share = (1 - sparsity) * (1 - rho)
    # Guards the floor against 0.5·0.1·… = 2.9999999999999996.
    return math.floor(share * out_features * in_features / (out_features + in_features) + 1e-9)


@dataclass(frozen=True)
class UnitRecipe:
    """One unit: a linear, or a group of linears that share an input, a mask and a threshold.

    `linears` names each linear in full, `outs` gives its out_features. `ranks` holds one rank for factors of the
    stacked weight, or one for each linear; `threshold` is None until calibration or the settling pass
    has solved it. A unit that keeps every channel needs none. `compensated` says that each linear has a vector [out] that
    is added on sparse rows.
    """

    linears: tuple[str, ...]
    outs: tuple[int, ...]
    in_features: int
    sparsity: float
    rho: float = 1.0
    ranks: tuple[int, ...] = (0,)
    criterion: str = "magnitude"
    threshold: float | None = None
    compensated: bool = False

    def __post_init__(self) -> None:
        for field in ("linears", "outs", "ranks"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        name = next(iter(self.linears), "?")
        if not self.linears or len(self.outs) != len(self.linears) or min(self.in_features, *self.outs) < 1:
            raise RSparseError(f"recipe unit {name}: needs at least one linear, each with positive sizes")
        if not 0 <= self.sparsity < 1:
            raise RSparseError(f"recipe unit {name}: sparsity must be in [0, 1), got {self.sparsity}")
        if not 0 <= self.rho <= 1:
            raise RSparseError(f"recipe unit {name}: rho must be in [0, 1], got {self.rho}")
        if self.sparsity == 0 and (self.rho != 1 or any(self.ranks) or self.compensated):
            raise RSparseError(f"recipe unit {name}: sparsity 0 keeps the weight whole: rho 1, rank 0, no compensation")
        if len(self.ranks) not in (1, len(self.linears)) or min(self.ranks) < 0:
            raise RSparseError(f"recipe unit {name}: ranks must be one number, or one for each linear")
        if self.kept_share < -1e-9:
            raise RSparseError(
                f"recipe unit {name}: what is always read costs more than sparsity {self.sparsity} leaves: ranks {self.ranks}"
            )
        if (1 - self.sparsity) * self.in_features < 1 - 1e-9:
            raise RSparseError(
                f"recipe unit {name}: sparsity {self.sparsity} leaves less than one of its {self.in_features} input channels"
            )
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise RSparseError(f"recipe unit {name}: threshold must be a finite number of 0 or more, got {self.threshold}")

    @classmethod
    def uniform(
        cls,
        linears: Mapping[str, int],
        in_features: int,
        sparsity: float,
        rho: float = 1.0,
        *,
        criterion: str = "magnitude",
        stacked: bool = False,
    ) -> UnitRecipe:
        """A unit whose ranks follow from (sparsity, rho): of the stacked weight, or of each linear by its own shape."""
        if not (0 <= sparsity < 1 and 0 <= rho <= 1):
            raise RSparseError(f"sparsity must be in [0, 1) and rho in [0, 1], got {sparsity} and {rho}")
        rho = 1.0 if sparsity == 0 else rho
        outs = [sum(linears.values())] if stacked else linears.values()
        ranks = tuple(lowrank_rank(sparsity, rho, out, in_features) for out in outs)
        return cls(tuple(linears), tuple(linears.values()), in_features, sparsity, rho, ranks, criterion)

    @property
    def out_features(self) -> int:
        return sum(self.outs)

    @property
    def size(self) -> int:
        """Weights of the unit."""
        return self.out_features * self.in_features

    @property
    def rank(self) -> int:
        """Rows of Vᵀ: what the low-rank part adds to the unit's always-on channels."""
        return sum(self.ranks)

    @property
    def linear_ranks(self) -> tuple[int, ...]:
        """Rank of each linear's U: that of the stacked factors for all, or its own."""
        return self.ranks * len(self.linears) if len(self.ranks) == 1 else self.ranks

    @property
    def lowrank_size(self) -> int:
        """Weights of U and V together."""
        outs = (self.out_features,) if len(self.ranks) == 1 else self.outs
        return sum(rank * (self.in_features + out) for rank, out in zip(self.ranks, outs, strict=True))

    @property
    def fixed_size(self) -> int:
        """Numbers that every sparse row reads: low-rank factors and compensation."""
        return self.lowrank_size + (self.out_features if self.compensated else 0)

    @property
    def kept_share(self) -> float:
        """Share of input channels that the budget leaves after what is always read: (1−s) − r·(in+out)/(in·out)."""
        return (1 - self.sparsity) - self.fixed_size / self.size


@dataclass(frozen=True)
class Recipe:
    """A whole model's recipe. Linears outside of its units stay dense.

    `model`, `calibration` and `compensation` say, for people, what it was made for, and what solved its thresholds and
    fitted its compensation.
    """

    model_type: str
    units: Mapping[str, UnitRecipe]
    method: str = "rsparse"
    grouping: str = "linear"
    fit: str = "svd"
    model: str = ""
    calibration: str = ""
    compensation: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", dict(self.units))
        if self.version != VERSION:
            raise RSparseError(f"recipe version {self.version} is not {VERSION}, the one that this rsparse reads")
        if self.grouping not in GROUPINGS:
            raise RSparseError(f"recipe: grouping must be one of {', '.join(GROUPINGS)}, got {self.grouping!r}")
        if self.fit not in FITS:
            raise RSparseError(f"recipe: fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if not self.units:
            raise RSparseError("recipe: it has no units")
        names = [name for unit in self.units.values() for name in unit.linears]
        if len(names) != len(set(names)):
            raise RSparseError("recipe: a linear appears in two units")

    @property
    def sparsity(self) -> float:
        """Asked sparsity over all units, weighted by their sizes."""
        total = sum(unit.size for unit in self.units.values())
        return sum(unit.sparsity * unit.size for unit in self.units.values()) / total if total else 0.0

    def by_kind(self) -> dict[str, list[UnitRecipe]]:
        """Units by `q_proj` and the like, or `gate_up` in groups."""
        found: dict[str, list[UnitRecipe]] = {}
        for name, unit in self.units.items():
            found.setdefault(name.rpartition(".")[2], []).append(unit)
        return found

    def kinds(self) -> dict[str, dict[str, Any]]:
        """By kind: mean `rho` over the blocks, the share of units with a rank (`ranked`), and each `criterion` among them."""
        return {
            kind: {
                "rho": round(sum(unit.rho for unit in units) / len(units), 4),
                "ranked": round(sum(unit.rank > 0 for unit in units) / len(units), 4),
                "criterion": sorted({unit.criterion for unit in units}),
            }
            for kind, units in self.by_kind().items()
        }

    @property
    def settled(self) -> bool:
        """Whether each unit that drops channels has its threshold."""
        return all(unit.threshold is not None or unit.kept_share >= 1 for unit in self.units.values())

    def with_thresholds(self, thresholds: Mapping[str, float | None]) -> Recipe:
        """The same recipe with new thresholds for the named units."""
        units = {
            name: dataclasses.replace(unit, threshold=thresholds[name]) if name in thresholds else unit
            for name, unit in self.units.items()
        }
        return dataclasses.replace(self, units=units)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "recipe") -> Recipe:
        """Inverse of `to_dict`. Raises RSparseError on unknown or missing keys and on values out of range."""
        data = checked_keys(cls, data, where)
        units = data["units"]
        if not isinstance(units, dict):
            raise RSparseError(f"{where}: 'units' must be an object of units by name")
        data["units"] = {
            name: UnitRecipe(**checked_keys(UnitRecipe, unit, f"{where}: unit {name}")) for name, unit in units.items()
        }
        try:
            return cls(**data)
        except (TypeError, AttributeError) as error:
            raise RSparseError(f"{where}: a value has the wrong type ({error})") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write readable JSON, atomically."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a recipe file. Raises RSparseError where it is missing, broken or not a recipe."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RSparseError(f"cannot read recipe {path}: {error.strerror}") from error
        except ValueError as error:
            raise RSparseError(f"recipe {path} is not valid JSON, perhaps cut short: {error}") from error
        return cls.from_dict(data, where=f"recipe {path}")

    def sha(self) -> str:
        """Twelve hex digits that name this recipe in result records, whatever its labels for people say."""
        content = {
            name: value for name, value in self.to_dict().items() if name not in ("model", "calibration", "compensation")
        }
        for unit in content["units"].values():
            if not unit["compensated"]:  # so that records of before there was one keep their names
                del unit["compensated"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
