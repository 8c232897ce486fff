"""What a model with sparse gated MLPs is asked to do, and its JSON form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsparse.errors import RSparseError
from rsparse.schema import checked_keys

VERSION = 1


@dataclass(frozen=True)
class GatedPlan:
    """A whole model's plan.

    `sparsity` is asked over all linears of all blocks; `kept` is the share of each MLP's neurons that this leaves to a sparse
    row, chosen by `rule` (a file in `gated.rules`, with its `options`). `kept_heads` of attention's heads are kept, all where
    it is None. `thresholds` by the MLP's name are None until a settling pass has solved them, and empty for a rule without
    any. `model` and `calibration` say, for people, what it was made for and what solved its thresholds.
    """

    method: str
    model_type: str
    rule: str
    sparsity: float
    kept: float
    kept_heads: int | None = None
    thresholds: Mapping[str, float] | None = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)
    model: str = ""
    calibration: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        if self.thresholds is not None:
            object.__setattr__(self, "thresholds", dict(self.thresholds))
        if self.version != VERSION:
            raise RSparseError(f"plan version {self.version} is not {VERSION}, the one that this rsparse reads")
        if not 0 <= self.sparsity < 1:
            raise RSparseError(f"plan of {self.method}: sparsity must be in [0, 1), got {self.sparsity}")
        if not 0 <= self.kept <= 1:
            raise RSparseError(f"plan of {self.method}: the kept share of neurons must be in [0, 1], got {self.kept}")
        if self.kept_heads is not None and self.kept_heads < 0:
            raise RSparseError(f"plan of {self.method}: kept_heads must be 0 or more, got {self.kept_heads}")
        for name, value in (self.thresholds or {}).items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise RSparseError(f"plan of {self.method}: the threshold of {name} must be a finite number, got {value}")
        for name, option in self.options.items():
            if not isinstance(option, int):
                raise RSparseError(f"plan of {self.method}: {name} must be a whole number, got {option}")

    @property
    def settled(self) -> bool:
        """Whether it has every threshold that its rule needs; a plan that keeps all neurons needs none."""
        return self.thresholds is not None or self.kept >= 1

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "plan") -> GatedPlan:
        """Inverse of `to_dict`. Raises RSparseError on unknown or missing keys and on values out of range."""
        return cls(**checked_keys(cls, data, where))

    def sha(self) -> str:
        """Twelve hex digits that name this plan in result records, whatever its labels for people say."""
        content = {name: value for name, value in self.to_dict().items() if name not in ("model", "calibration")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
