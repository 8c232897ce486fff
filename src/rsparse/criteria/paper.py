"""The pair in R-Sparse's released code: column norm where there is a low-rank part, magnitude where there is none."""

from torch import Tensor


def channel_scale(weight: Tensor, residual: Tensor, rank: int) -> Tensor | None:
    return weight.float().norm(dim=0) if rank else None
