"""CATS: a neuron is kept where |act(gate x)| is above the MLP's threshold; gate is read whole."""

from __future__ import annotations

from torch import Tensor

from rsparse.calibration.histogram import solve_threshold
from rsparse.gated.plan import GatedPlan
from rsparse.gated.rules import Neurons
from rsparse.row_policy import RowPolicy


class Rule:
    spares = ("up", "down")
    solves, watches, whole_is_dense = True, False, True

    def __init__(self, plan: GatedPlan, neurons: int, threshold: float | None) -> None:
        self.kept, self.threshold = plan.kept, threshold or 0.0

    def solve(self, found: Neurons) -> float:
        self.threshold = solve_threshold(found.active, None, self.kept)
        return self.threshold

    def watch(self, found: Neurons, rows: RowPolicy) -> None:
        pass

    def apply(self, found: Neurons, rows: RowPolicy) -> tuple[Tensor, Tensor]:
        kept = found.active.abs().float() > self.threshold
        return found.hidden.masked_fill(~kept, 0), kept
