"""Deja Vu with an oracle for its predictor: each token keeps its neurons of the largest |act(gate x)·(up x)|."""

from __future__ import annotations

import torch
from torch import Tensor

from rsparse.gated.plan import GatedPlan
from rsparse.gated.rules import Neurons, count
from rsparse.row_policy import RowPolicy


class Rule:
    spares = ("gate", "up", "down")
    solves, watches, whole_is_dense = False, False, True

    def __init__(self, plan: GatedPlan, neurons: int, threshold: float | None) -> None:
        self.count = count(plan.kept, neurons)

    def solve(self, found: Neurons) -> float:
        raise NotImplementedError("it has no threshold")

    def watch(self, found: Neurons, rows: RowPolicy) -> None:
        pass

    def apply(self, found: Neurons, rows: RowPolicy) -> tuple[Tensor, Tensor]:
        kept = largest(found.hidden.abs(), self.count)
        return found.hidden.masked_fill(~kept, 0), kept


def largest(score: Tensor, kept: int) -> Tensor:
    """bool like `score`: its `kept` largest entries along the last axis, exactly that many."""
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, score.topk(kept, dim=-1).indices, True)
