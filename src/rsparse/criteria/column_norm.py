"""Column norm: c_j = ‖W[:, j]‖₂ (WINA; R-Sparse's released code where rho < 1)."""

from torch import Tensor


def channel_scale(weight: Tensor, residual: Tensor, rank: int) -> Tensor | None:
    return weight.float().norm(dim=0)
