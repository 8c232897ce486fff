"""GRIFFIN (arXiv 2404.01365; code hdong920/GRIFFIN): neurons chosen from the prompt, and kept for the rest of the sequence.

With Z = act(gate X)·(up X) over the prompt's tokens and each row of Z divided by its norm, the statistic of neuron j is
‖Z̄[:, j]‖₂; the largest are kept. The prompt is what runs dense before: each row of a batch has its own, without padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsparse.errors import RefusedError, RSparseError
from rsparse.gated.plan import GatedPlan
from rsparse.gated.rules import Neurons, count
from rsparse.row_policy import RowPolicy


class Rule:
    spares = ("gate", "up", "down")
    solves, watches, whole_is_dense = False, True, True

    def __init__(self, plan: GatedPlan, neurons: int, threshold: float | None) -> None:
        self.method, self.count = plan.method, count(plan.kept, neurons)
        self._energy: Tensor | None = None  # [batch, neurons]: squares of the statistic so far
        self._chosen: Tensor | None = None  # bool [batch, 1, neurons]

    def solve(self, found: Neurons) -> float:
        raise NotImplementedError("it has no threshold")

    def watch(self, found: Neurons, rows: RowPolicy) -> None:
        policy = rows.token_policy
        if policy.kind == "dense":
            return
        if policy.kind == "all" or policy.fraction == 1:
            raise RefusedError(
                f"{self.method} chooses its neurons from a dense prompt, and token policy {policy} has none; "
                "use decode, or last_fraction:F with F below 1"
            )
        if rows.past == 0:
            self._energy = self._chosen = None
        context = rows.dense_rows(found.hidden.shape[:-1], found.hidden.device)
        if context is None:
            return
        if not policy.sink_tokens and rows.sparse is not False and not bool(context.any(-1).all()):
            raise RSparseError(f"{self.method} chooses its neurons from a dense prompt, and a sequence here has none")
        z = found.hidden.to(torch.promote_types(found.hidden.dtype, torch.float32))
        squares = (z / z.norm(dim=-1, keepdim=True).clamp_min(1e-30)).square().masked_fill(~context.unsqueeze(-1), 0).sum(1)
        self._energy = squares if self._energy is None else self._energy + squares
        chosen = self._energy.topk(self.count, dim=-1).indices
        self._chosen = torch.zeros_like(squares, dtype=torch.bool).scatter_(-1, chosen, True).unsqueeze(1)

    def apply(self, found: Neurons, rows: RowPolicy) -> tuple[Tensor, Tensor]:
        if self._chosen is None or len(self._chosen) != len(found.hidden):
            raise RSparseError(
                f"{self.method} chooses its neurons from the prompt, and has not seen this sequence's; run that first, dense"
            )
        return found.hidden.masked_fill(~self._chosen, 0), self._chosen
