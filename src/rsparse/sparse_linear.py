"""The linear whose sparse rows read part of the weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsparse.meter import SparsityMeter
from rsparse.ops.dispatch import Backend
from rsparse.row_policy import RowPolicy


class RSparseLinear(nn.Linear):
    """Dense rows: y = W x + b. Sparse rows: y = W (m⊙x) + U Vᵀ((1−m)⊙x) + b + compensation.

    weight: [out, in] as on disk; U: [out, r], V: [in, r] and compensation: [out] in its dtype, or None; channel_scale:
    [in] fp32 or None for ones; threshold: scalar fp32. In a group the first member leads: channel_scale, threshold
    and, where the factors are of the stacked weight, V are its buffers, and the others read them there.
    """

    U: Tensor | None
    V: Tensor | None
    compensation: Tensor | None
    channel_scale: Tensor | None
    threshold: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        unit: str,
        policy: RowPolicy,
        ops: Backend,
        *,
        rank: int,
        scaled: bool,
        compensated: bool = False,
        leader: RSparseLinear | None = None,
        stacked: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.unit, self.policy, self.ops = unit, policy, ops
        self.meter: SparsityMeter | None = None
        self._leader: tuple[RSparseLinear, ...] = (leader,) if leader is not None else ()  # a tuple, so that it is no submodule
        self._led = () if leader is None else ("channel_scale", "threshold", "V") if stacked else ("channel_scale", "threshold")
        weight = linear.weight
        buffers = {
            "U": weight.new_zeros(self.out_features, rank) if rank else None,
            "V": weight.new_zeros(self.in_features, rank) if rank else None,
            "compensation": weight.new_zeros(self.out_features) if compensated else None,
            "channel_scale": weight.new_ones(self.in_features, dtype=torch.float32) if scaled else None,
            "threshold": weight.new_zeros((), dtype=torch.float32),
        }
        for name, buffer in buffers.items():
            if name not in self._led:
                # The recipe holds the threshold; a copy in the state dict could disagree.
                self.register_buffer(name, buffer, persistent=name != "threshold")

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("_led", ()):
            return getattr(self._leader[0], name)
        return super().__getattr__(name)

    @property
    def rank(self) -> int:
        return 0 if self.U is None else self.U.shape[1]

    def forward(self, input: Tensor) -> Tensor:
        x, sparse = input, self.policy.sparse
        if sparse is False:
            return F.linear(x, self.weight, self.bias)
        row_mask = sparse if isinstance(sparse, Tensor) else None
        if self.compensation is None:
            return self._masked(x, row_mask, self.bias)
        if row_mask is None:
            return self._masked(x, None, self.compensation if self.bias is None else self.bias + self.compensation)
        return torch.addcmul(self._masked(x, row_mask, self.bias), row_mask.unsqueeze(-1).to(x.dtype), self.compensation)

    def _masked(self, x: Tensor, row_mask: Tensor | None, bias: Tensor | None) -> Tensor:
        packed = self.ops.pack(self.weight, self.U, self.V)
        if self.meter is None and x.shape[:-1].numel() <= self.ops.gather_rows:
            rows = x.reshape(-1, self.in_features)
            flat = None if row_mask is None else row_mask.reshape(-1)
            chosen = self.ops.select(rows, self.channel_scale, self.threshold, V=self.V, row_mask=flat)
            return self.ops.gather_gemv(packed, *chosen, bias).view(*x.shape[:-1], self.out_features)
        masked = self.ops.mask_rows(x, self.channel_scale, self.threshold, row_mask, rank=self.rank)
        if self.meter is not None:
            self.meter.add(self.unit, masked.counts, self.in_features, *self.policy.counted(masked.counts.shape))
        return self.ops.masked_gemm(packed, x, masked, bias)

    def _apply(self, fn: Any, recurse: bool = True) -> RSparseLinear:
        """`.to(dtype)` moves score scale and threshold but never rounds them: a mask is exact or it is another."""
        exact = {name: self._buffers.get(name) for name in ("channel_scale", "threshold")}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            now = self._buffers.get(name)
            if before is not None and now is not None and now.dtype != torch.float32:
                self._buffers[name] = before.to(now.device)
        return self

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}"
