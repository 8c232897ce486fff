"""ReLUfication: the activation becomes ReLU, shifted to T0: a neuron is gate x where that is above T0, and else 0."""

from __future__ import annotations

from torch import Tensor

from rsparse.calibration.histogram import solve_threshold
from rsparse.gated.plan import GatedPlan
from rsparse.gated.rules import Neurons
from rsparse.row_policy import RowPolicy


class Rule:
    """T0 is never below 0: what ReLU makes 0 need not be read, however little sparsity is asked."""

    spares = ("up", "down")
    solves, watches, whole_is_dense = True, False, False

    def __init__(self, plan: GatedPlan, neurons: int, threshold: float | None) -> None:
        self.kept, self.threshold = plan.kept, threshold or 0.0

    def solve(self, found: Neurons) -> float:
        positive = found.gate.clamp_min(0)
        above = float((positive > 0).double().mean())
        self.threshold = 0.0 if self.kept >= above else solve_threshold(positive, None, self.kept)
        return self.threshold

    def watch(self, found: Neurons, rows: RowPolicy) -> None:
        pass

    def apply(self, found: Neurons, rows: RowPolicy) -> tuple[Tensor, Tensor]:
        kept = found.gate.float() > self.threshold
        return (found.gate * found.up).masked_fill(~kept, 0), kept
