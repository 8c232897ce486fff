"""The best rank-r approximation of a weight, without a full SVD."""

from __future__ import annotations

import torch
from torch import Tensor

from rsparse.lowrank.leading import leading, preferred


def truncated_svd(weight: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """U [out, r] and V [in, r] in fp32 with U Vᵀ near the best approximation of `weight` [out, in]; so is each prefix.

    On a CPU they are left vectors · σ and right vectors, on a GPU P and Wᵀ P with P `leading`.
    """
    if preferred(weight):
        P = leading(weight.float(), rank, seed=seed)
        return P, weight.float().T @ P
    left, sigma, right = top_singular(weight.float(), rank, seed=seed)
    return left * sigma, right


def top_singular(a: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` largest singular triplets of a [m, n]: left [m, r], σ [r], right [n, r].

    Small ranks by randomised subspace iteration, O(m·n·r); from a quarter of the smaller side on by the
    eigenvectors of its Gram matrix, where subspace iteration costs as much.
    """
    rank = min(rank, *a.shape)
    if rank * 4 >= min(a.shape):
        return _by_gram(a, rank)
    oversampled = min(rank + max(16, rank // 2), *a.shape)
    devices = [a.device] if a.is_cuda else []
    with torch.random.fork_rng(devices=devices):  # svd_lowrank takes no generator
        torch.manual_seed(seed)
        left, sigma, right = torch.svd_lowrank(a, q=oversampled, niter=3)
    return left[:, :rank], sigma[:rank], right[:, :rank]


def _by_gram(a: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    if a.shape[0] > a.shape[1]:
        right, sigma, left = _by_gram(a.T, rank)
        return left, sigma, right
    # fp64: squaring the condition number in fp32 loses every σ below 3e-4 of the largest.
    wide = a.double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    left = vectors[:, -rank:].flip(1)
    sigma = values[-rank:].flip(0).clamp_min(0).sqrt()
    # Below 1e-7 of the largest σ a triplet is rounding noise: its right vector is left at zero.
    right = (wide.T @ left) * torch.where(sigma > 1e-7 * sigma[0], 1 / sigma, 0)
    return left.to(a.dtype), sigma.to(a.dtype), right.to(a.dtype)
