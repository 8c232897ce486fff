"""Achieved sparsity and bytes, counted while a model runs."""

from __future__ import annotations

import torch
from torch import Tensor


class SparsityMeter:
    """Counts, unit by unit, the channels that sparse rows keep. Dense rows and padding do not count."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._rows: dict[str, int | Tensor] = {}
        self.channels: dict[str, int] = {}

    def add(self, unit: str, counts: Tensor, channels: int, counted: Tensor | None, rows: int | Tensor) -> None:
        """counts: [...], kept of `channels` by row; `counted` and `rows` as RowPolicy.counted gives them for that shape."""
        kept = (counts if counted is None else counts * counted).sum(
            dtype=torch.float64 if counts.is_floating_point() else None
        )
        self._kept[unit] = self._kept[unit] + kept if unit in self._kept else kept
        self._rows[unit] = self._rows.get(unit, 0) + rows
        self.channels[unit] = channels

    def kept_share(self, unit: str) -> float | None:
        """Share of `unit`'s input channels that its sparse rows kept, or None where no sparse row ran."""
        rows = int(self._rows.get(unit, 0))
        return int(self._kept[unit]) / (rows * self.channels[unit]) if rows else None

    @property
    def sparse_rows(self) -> int:
        """Sparse rows that ran, the same for every unit."""
        return max((int(rows) for rows in self._rows.values()), default=0)
