"""Case I of R-Sparse (arXiv 2504.19449): the input of down goes through the multi-phase ReLU.

Entries of T0 and above are kept; below, `phases` intervals of equal width reach down to the row's least entry, and each
entry becomes the middle of its interval. The page leaves the intervals' widths open. Which columns of down share a value
differs from token to token, so their sums are not ready-made: everything is read, and no byte is saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rsparse.calibration.histogram import solve_threshold
from rsparse.errors import RSparseError
from rsparse.gated.plan import GatedPlan
from rsparse.gated.rules import Neurons
from rsparse.row_policy import RowPolicy


def multi_phase_relu(x: Tensor, thresholds: Sequence[float | Tensor]) -> Tensor:
    """x where it is at least T0; (T_i + T_{i+1})/2 where T_{i+1} ≤ x < T_i. `thresholds` T0 > T1 > …, the last no more than
    the least of x; each a number, or a tensor that broadcasts to x."""
    result = x
    for high, low in pairwise(thresholds):
        result = torch.where((x >= low) & (x < high), (high + low) / 2, result)
    return result


class Rule:
    spares: tuple[str, ...] = ()
    solves, watches, whole_is_dense = True, False, True

    def __init__(self, plan: GatedPlan, neurons: int, threshold: float | None) -> None:
        self.kept, self.threshold = plan.kept, threshold or 0.0
        self.phases = plan.options.get("phases", 1)
        if self.phases < 1:
            raise RSparseError(f"plan of {plan.method}: phases must be 1 or more, got {self.phases}")

    def solve(self, found: Neurons) -> float:
        self.threshold = solve_signed(found.hidden, self.kept)
        return self.threshold

    def watch(self, found: Neurons, rows: RowPolicy) -> None:
        pass

    def apply(self, found: Neurons, rows: RowPolicy) -> tuple[Tensor, Tensor]:
        x = found.hidden.float() if found.hidden.dtype.itemsize < 4 else found.hidden
        first = torch.full((), self.threshold, dtype=x.dtype, device=x.device)
        least = x.amin(-1, keepdim=True).minimum(first)
        between = [first + (least - first) * phase / self.phases for phase in range(1, self.phases)]
        return multi_phase_relu(x, [first, *between, least]).to(found.hidden.dtype), x >= first


def solve_signed(x: Tensor, share: float) -> float:
    """The T for which `share` of x [rows, n] is T or more, by `solve_threshold` on the side where T lies; exact in fp32."""
    positive = float((x > 0).double().mean())
    if share <= positive:
        above = torch.tensor(solve_threshold(x.clamp_min(0), None, share), dtype=torch.float32)
        return float(torch.nextafter(above, torch.tensor(math.inf)))
    return -float(torch.tensor(solve_threshold((-x).clamp_min(0), None, 1 - share), dtype=torch.float32))
