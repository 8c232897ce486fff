"""Weights, inputs and masks of a case, as often as it takes that no cache holds what is read, and the calls of each path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rsparse.benchmark.kernels import paths
from rsparse.benchmark.kernels.cases import Budget, Case, block_of
from rsparse.benchmark.kernels.reading import UnitPath, dense_bytes
from rsparse.ops.fused import FusedOps, Group, Norm
from rsparse.ops.fused.reference import ReferenceOps, act_mul, rms_norm
from rsparse.ops.fused.timing import copies

TOLERANCE = 0.02  # relative RMS to the reference; rounding is a fifth of it
# Of an MLP: gate·up next to the threshold falls on either side when its last bit differs.
MLP_TOLERANCE = 0.2


@torch.no_grad()
def between(score: Tensor, kept: int) -> Tensor:
    """A threshold that keeps the `kept` largest of score [n], all but ties; −inf for all of them."""
    if kept >= score.numel():
        return score.new_full((), float("-inf"))
    top = score.topk(kept + 1).values
    return (top[-2] + top[-1]) / 2


class Problem:
    """Everything a case's paths share; each path makes what it alone needs."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.case, self.device, self.dtype = case, device, dtype
        self.block, self.linears = block_of(case.model), case.linears
        self.generator = torch.Generator(device).manual_seed(seed)
        size = dense_bytes(self.linears, dtype.itemsize)
        read = size if paths.reads_every_weight(case.batch) else size * (1 - case.sparsity)
        self.copies = copies(round(read)) if device.type == "cuda" else 2
        self.dense_copies = min(self.copies, copies(size))
        self.weights = [
            [self._normal(each.in_features, each.out_features, std=each.in_features**-0.5) for each in self.linears]
            for _ in range(self.copies)
        ]
        self.biases = [self._normal(each.out_features) if each.biased else None for each in self.linears]
        first, last = self.linears[0], self.linears[-1]
        self.add = self._normal(case.batch, last.out_features)
        like = torch.zeros if self.block.plus_one else torch.ones
        self.norm = Norm(like(first.in_features, device=device, dtype=dtype), self.block.eps, self.block.plus_one)
        self.normed = case.unit not in ("o", "down")

    @torch.no_grad()
    def sparse(self, ranks: str) -> UnitPath:
        """The runtime's path at the case's sparsity, with or without factors."""
        budgets = [each.budget(self.case.sparsity, ranks) for each in self.linears]
        made = [
            [
                paths.sparse_group(each, weight, bias, budget.rank, self.generator)
                for each, weight, bias, budget in zip(self.linears, weights, self.biases, budgets, strict=True)
            ]
            for weights in self.weights
        ]
        return self._masked(paths.runtime_ops(self.device), made, budgets, self.add)

    @torch.no_grad()
    def masked(self) -> UnitPath:
        """TEAL's way at the same sparsity."""
        budgets = [each.budget(self.case.sparsity, "none") for each in self.linears]
        made = [[paths.masked_group(weight) for weight in weights] for weights in self.weights]
        return self._masked(paths.MaskedTiles(self.device), made, budgets, None)

    @torch.no_grad()
    def dense(self, name: str) -> UnitPath:
        """One of cases.DENSE, or cases.ALONE."""
        made = self._by_channel if name == "channels" else self._by_row
        ops = paths.dense_ops(name, self.device)
        inputs = [self._input(self.linears[0].in_features) for _ in made]
        calls = [self._call(ops, groups, x, self.add) for groups, x in zip(made, inputs, strict=True)]
        if isinstance(ops, paths.Alone):
            return UnitPath(calls, None)
        return UnitPath(calls, self._error(ops, made[0], inputs[0], self.add))

    @functools.cached_property
    def _by_channel(self) -> list[list[Group]]:
        return [self._dense_groups(weights) for weights in self.weights[: self.dense_copies]]

    @functools.cached_property
    def _by_row(self) -> list[list[Group]]:
        return [self._dense_groups([w.T.contiguous().T for w in weights]) for weights in self.weights[: self.dense_copies]]

    def _dense_groups(self, weights: Sequence[Tensor]) -> list[Group]:
        return [paths.dense_group(weight, bias) for weight, bias in zip(weights, self.biases, strict=True)]

    def _call(
        self, ops: FusedOps | paths.Alone, groups: Sequence[Group], x: Tensor, add: Tensor | None
    ) -> Callable[[], Tensor]:
        return paths.caller(ops, self.case.unit, self.block, self.norm, groups, x, add)

    def _masked(
        self, ops: FusedOps, made: Sequence[Sequence[Group]], budgets: Sequence[Budget], add: Tensor | None
    ) -> UnitPath:
        inputs = [self._input(budgets[0].kept) for _ in made]
        counts = [self._draw(ops, groups, budgets, x) for groups, x in zip(made, inputs, strict=True)]
        mean = torch.stack(counts).double().mean(0).tolist()
        every = paths.reads_every_weight(self.case.batch)
        return UnitPath(
            [self._call(ops, groups, x, add) for groups, x in zip(made, inputs, strict=True)],
            self._error(ops, made[0], inputs[0], add),
            kept=tuple(kept for kept, _, _ in mean),
            reads=tuple((each.in_features if every else w, v) for each, (_, w, v) in zip(self.linears, mean, strict=True)),
            ranks=tuple(budget.rank for budget in budgets),
            ops=type(ops).__name__,
        )

    def _draw(self, ops: FusedOps, groups: Sequence[Group], budgets: Sequence[Budget], x: Tensor) -> Tensor:
        """Set the groups' thresholds by what they read; returns [inputs, 3]: see `counts`."""
        values = rms_norm(x, self.norm) if self.normed else x
        found = []
        for place, (group, budget) in enumerate(zip(groups, budgets, strict=True)):
            if place:
                values = act_mul(ops.norm_project(x, self.norm, groups[0]), self.block.act)
            score = values.float().abs() if group.channel_scale is None else values.float().abs() * group.channel_scale[0]
            group.threshold.copy_(between(score.flatten(), budget.kept * len(x)))
            found.append(counts(score > group.threshold))
        return torch.stack(found)

    def _input(self, kept: int) -> Tensor:
        """x [rows, in], whose scores beyond the `kept` largest of a row are far smaller."""
        rows, columns = self.case.batch, self.linears[0].in_features
        order = self._uniform(rows, columns).argsort(1).argsort(1)
        size = torch.where(order < kept, 1 + self._uniform(rows, columns), self._uniform(rows, columns) / 4)
        return (size * torch.where(self._uniform(rows, columns) < 0.5, -1, 1)).to(self.dtype)

    def _error(self, ops: FusedOps, groups: Sequence[Group], x: Tensor, add: Tensor | None) -> float:
        """Relative RMS distance from the reference ops. Raises ArithmeticError where it is no rounding any more."""
        found, expected = (self._call(each, groups, x, add)().float() for each in (ops, ReferenceOps()))
        error = float(((found - expected).square().mean() / expected.square().mean()).sqrt())
        if not error <= (MLP_TOLERANCE if self.case.unit == "mlp" else TOLERANCE):
            raise ArithmeticError(f"it is {error:.3g} from the reference, relative RMS")
        return error

    def _normal(self, *size: int, std: float = 1.0) -> Tensor:
        made = torch.empty(size, device=self.device, dtype=self.dtype)
        return made.normal_(0, std, generator=self.generator)

    def _uniform(self, *size: int) -> Tensor:
        return torch.rand(size, device=self.device, generator=self.generator)


def counts(m: Tensor) -> Tensor:
    """Of masks m [rows, in]: channels that a row keeps (the mean), that any row keeps, and that any row drops."""
    return torch.stack([m.sum(1).double().mean(), m.any(0).sum().double(), (~m).any(0).sum().double()])
