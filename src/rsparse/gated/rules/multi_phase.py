"""Case I of R-Sparse (arXiv 2504.19449): the input of down goes through the multi-phase ReLU.

Entries of T0 and above are kept; below, `phases` intervals of equal width reach down to the row's least entry, and each
entry becomes the middle of its interval. The page leaves the intervals' widths open. Which columns of down share a value
differs from token to token, so their sums are not ready-made: everything is read, and no byte is saved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rsparse.calibration.histogram import solve_threshold
from rsparse.errors import RSparseError
from rsparse.gated.plan import GatedPlan
from rsparse.gated.rules import Neurons
from rsparse.row_policy import RowPolicy


def phase_of(x: Tensor, t0: float | Tensor, phases: int) -> tuple[Tensor, Tensor]:
    """(phase of each entry of x [..., in], −1 where it is kept; each phase's constant [..., phases], fp32 or finer).

    Phase i is T_i > x ≥ T_{i+1}, its constant (T_i + T_{i+1})/2; the last T is the least of each row.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    width = (t0 - x.amin(-1, keepdim=True)).clamp_min(0) / phases
    number = ((t0 - x) / width.clamp_min(1e-30)).ceil() - 1  # x = T_i is in the phase that ends there
    number = number.clamp(0, phases - 1).long()
    middles = torch.arange(phases, device=x.device) + 0.5
    return torch.where(x < t0, number, -1), t0 - middles * width


def multi_phase_relu(x: Tensor, t0: float | Tensor, phases: int) -> Tensor:
    """x [..., in] with each entry below t0 at its phase's constant."""
    number, constants = phase_of(x, t0, phases)
    return torch.where(number < 0, x, constants.gather(-1, number.clamp_min(0)).to(x.dtype))


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
        exact = found.hidden.to(torch.promote_types(found.hidden.dtype, torch.float32))
        return multi_phase_relu(found.hidden, self.threshold, self.phases), exact >= self.threshold


def solve_signed(x: Tensor, share: float) -> float:
    """The T for which `share` of x [rows, n] is T or more, by `solve_threshold` on the side where T lies; exact in fp32."""
    positive = float((x > 0).double().mean())
    if share <= positive:
        above = torch.tensor(solve_threshold(x.clamp_min(0), None, share), dtype=torch.float32)
        return float(torch.nextafter(above, torch.tensor(math.inf)))
    return -float(torch.tensor(solve_threshold((-x).clamp_min(0), None, 1 - share), dtype=torch.float32))
