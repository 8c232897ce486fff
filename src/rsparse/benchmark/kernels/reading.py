"""What a way to run a unit reads, counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from rsparse.benchmark.kernels.cases import Linears


@dataclass(frozen=True)
class UnitPath:
    """A way to run the unit: a call for each copy of the weights, and `error`, its distance from the reference, relative RMS.

    By input of the unit, means over the copies: `kept` channels of a row, `reads` as rows of W and rows of V; then `ranks`.
    All three are empty where everything is read. `ops` names the class that ran.
    """

    calls: Sequence[Callable[[], Tensor]]
    error: float | None
    kept: tuple[float, ...] = ()
    reads: tuple[tuple[float, float], ...] = ()
    ranks: tuple[int, ...] = ()
    ops: str = ""

    def weight_bytes(self, linears: Sequence[Linears], itemsize: int) -> int:
        """Rows of W and V that a call reads, and all of U and the biases."""
        total = 0.0
        for each, (w, v), rank in zip(linears, self.reads, self.ranks, strict=True):
            total += (w * each.out_features + rank * (v + each.out_features)) * itemsize + bias_bytes(each)
        return round(total)


def bias_bytes(linears: Linears) -> int:
    return 4 * linears.out_features if linears.biased else 0


def dense_bytes(linears: Sequence[Linears], itemsize: int) -> int:
    return sum(each.size * itemsize + bias_bytes(each) for each in linears)
