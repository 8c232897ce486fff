"""Achieved sparsity and bytes, counted while a model runs."""

from __future__ import annotations

import torch
from torch import Tensor


class SparsityMeter:
    """Counts, unit by unit, the channels that sparse rows keep. Dense rows and padding do not count."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self.channels: dict[str, int] = {}

    def add(self, unit: str, mask: Tensor, sparse: bool | Tensor, valid: Tensor | None) -> None:
        """mask: [..., in], True where kept; `sparse` and `valid` as in RowPolicy, of mask's leading shape."""
        per_row = mask.sum(-1)
        counted = torch.ones_like(per_row, dtype=torch.bool)
        if isinstance(sparse, Tensor):
            counted = counted & sparse
        if valid is not None:
            counted = counted & valid
        zero = torch.zeros((), dtype=torch.int64, device=mask.device)
        self._kept[unit] = self._kept.get(unit, zero) + (per_row * counted).sum()
        self._rows[unit] = self._rows.get(unit, zero) + counted.sum()
        self.channels[unit] = mask.shape[-1]

    def kept_share(self, unit: str) -> float | None:
        """Share of `unit`'s input channels that its sparse rows kept, or None where no sparse row ran."""
        rows = int(self._rows.get(unit, torch.zeros(())))
        return int(self._kept[unit]) / (rows * self.channels[unit]) if rows else None

    @property
    def sparse_rows(self) -> int:
        """Sparse rows that ran, the same for every unit."""
        return max((int(rows) for rows in self._rows.values()), default=0)
