"""Magnitude: the score is |x_j| (R-Sparse with rho = 1, TEAL)."""

from torch import Tensor


def channel_scale(weight: Tensor, residual: Tensor, rank: int) -> Tensor | None:
    return None
