"""The gated MLP and the attention heads whose sparse rows read part of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rsparse.errors import RSparseError
from rsparse.gated.parts import BlockParts
from rsparse.gated.rules import Neurons, Rule
from rsparse.gated.rules.oracle import largest
from rsparse.meter import SparsityMeter
from rsparse.row_policy import RowPolicy


class GatedMLP(nn.Module):
    """Dense rows: the MLP that it stands for, bit for bit. Sparse rows: the neurons that `rule` keeps.

    Its children are that MLP's own, under their names. Dropped neurons are masked between dense products.
    """

    def __init__(self, mlp: nn.Module, parts: BlockParts, rule: Rule, policy: RowPolicy) -> None:
        super().__init__()
        self.unit, self.rule, self.policy = parts.mlp, rule, policy
        self.meter: SparsityMeter | None = None
        self._original = (mlp,)  # a tuple, so that it is no submodule: its children are this one's
        for name, child in mlp.named_children():
            self.add_module(name, child)
        self._names = tuple(parts.local(role) for role in ("gate", "up", "down"))
        self.train(mlp.training)

    @property
    def original(self) -> nn.Module:
        return self._original[0]

    def neurons(self, x: Tensor) -> Neurons:
        """x: [..., hidden]. The products in the order of transformers' own MLPs, so that `hidden` is theirs to the bit."""
        gate_proj, up_proj, _ = (self.get_submodule(name) for name in self._names)
        gate: Tensor = gate_proj(x)
        active: Tensor = self.original.act_fn(gate)  # type: ignore[operator]
        up: Tensor = up_proj(x)
        return Neurons(gate, active, up, active * up)

    def settle(self, rows: Tensor) -> float:
        """Solve the rule's threshold on rows [..., hidden]. Raises RSparseError where they are not finite."""
        if not bool(rows.isfinite().all()):
            raise RSparseError(f"activations at {self.unit} are not finite once the model is sparse; lower the sparsity")
        return self.rule.solve(Neurons(*(part.flatten(0, -2) for part in self.neurons(rows))))

    def forward(self, x: Tensor) -> Tensor:
        sparse = self.policy.sparse
        if sparse is False and not self.rule.watches:
            return self.original(x)
        found = self.neurons(x)
        self.rule.watch(found, self.policy)
        hidden = found.hidden
        if sparse is not False:
            hidden, kept = self.rule.apply(found, self.policy)
            if self.meter is not None:
                counts = kept.sum(-1).expand(x.shape[:-1])
                self.meter.add(self.unit, counts, kept.shape[-1], *self.policy.counted(counts.shape))
        if isinstance(sparse, Tensor):
            hidden = torch.where(sparse.unsqueeze(-1), hidden, found.hidden)
        down: Any = self.get_submodule(self._names[2])
        return down(hidden)


class HeadChoice:
    """A mask in front of o_proj: each sparse row keeps its `kept` heads of largest output norm. A forward pre-hook."""

    def __init__(self, unit: str, heads: int, kept: int, policy: RowPolicy) -> None:
        self.unit, self.heads, self.kept, self.policy = unit, heads, kept, policy
        self.meter: SparsityMeter | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        sparse = self.policy.sparse
        if sparse is False:
            return None
        x = args[0]  # [batch, tokens, heads · head_dim]
        outputs = x.unflatten(-1, (self.heads, -1))
        kept = largest(torch.linalg.vector_norm(outputs, dim=-1), self.kept)
        if self.meter is not None:
            counts = kept.sum(-1)
            self.meter.add(self.unit, counts, self.heads, *self.policy.counted(counts.shape))
        dropped = ~kept if isinstance(sparse, bool) else ~kept & sparse.unsqueeze(-1)
        return (outputs.masked_fill(dropped.unsqueeze(-1), 0).flatten(-2),)
