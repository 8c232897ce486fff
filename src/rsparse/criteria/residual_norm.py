"""Residual norm: c_j = ‖R[:, j]‖₂, the error left when channel j goes through the low-rank part alone."""

from torch import Tensor


def channel_scale(weight: Tensor, residual: Tensor, rank: int) -> Tensor | None:
    return residual.float().norm(dim=0)
