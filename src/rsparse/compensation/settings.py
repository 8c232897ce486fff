"""What a fit is: the same settings give the same result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rsparse.errors import RSparseError


@dataclass(frozen=True)
class FitSettings:
    """`steps` of Adam at most, on `batch_tokens` each; `learning_rate` is in units of an output channel's spread.

    Low-rank factors move at `factor_rate` times it, in units of their RMS. `levels` also fits each unit's threshold, and with
    it where the bytes go; `factors` the low-rank factors. Every `check_every` steps the held-out windows decide: a state that
    is worse by more than chance is given up for the best so far, from which the fit goes on at half the rate, and `patience`
    checks in a row without a better one end it. Raises RSparseError for values out of range.
    """

    steps: int = 200
    batch_tokens: int = 4096
    learning_rate: float = 0.0025
    factor_rate: float = 4.0
    levels: bool = True
    factors: bool = True
    check_every: int = 20
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens", "check_every", "patience"):
            if getattr(self, name) < 1:
                raise RSparseError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate <= 1:
            raise RSparseError(f"learning_rate must be in (0, 1], got {self.learning_rate}")
        if not 0 < self.factor_rate <= 100:
            raise RSparseError(f"factor_rate must be in (0, 100], got {self.factor_rate}")
        if self.seed < 0:
            raise RSparseError(f"seed must be 0 or more, got {self.seed}")

    def check_window(self, seq_len: int) -> None:
        """Raises RSparseError where a step is less than one window."""
        if self.batch_tokens < seq_len:
            raise RSparseError(f"batch_tokens {self.batch_tokens} is less than one window of {seq_len} tokens")

    @classmethod
    def parse(cls, options: Mapping[str, str], device: str) -> FitSettings:
        """The device's default with `options`, strings by field. Raises RSparseError for an unknown one and a wrong value."""
        default = cls.for_device(device)
        given = {name: _read(default, name, text) for name, text in options.items()}
        return replace(default, **given)

    @classmethod
    def for_device(cls, device: str) -> FitSettings:
        """The default, on a `cpu` less than an eighth of the work: a quarter of an hour for 135 M weights on two cores."""
        return cls(steps=60, batch_tokens=1024, learning_rate=0.005, factor_rate=1.0) if device == "cpu" else cls()


def _read(default: FitSettings, name: str, text: str) -> Any:
    if name not in {field.name for field in fields(default)}:
        raise RSparseError(f"compensate takes no option {name!r}")
    value = getattr(default, name)
    try:
        return {"true": True, "false": False}[text.lower()] if isinstance(value, bool) else type(value)(text)
    except (ValueError, KeyError):
        raise RSparseError(f"compensate: {name} must be like {value}, got {text!r}") from None
