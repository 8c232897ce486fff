"""The best low-rank stand-in for a weight on the inputs that the mask drops."""

from __future__ import annotations

from torch import Tensor

from rsparse.lowrank.leading import leading, preferred
from rsparse.lowrank.svd import top_singular


def fit_to_dropped(weight: Tensor, dropped: Tensor, rank: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """U [out, r], V [in, r] with U Vᵀ = argmin over rank r of ‖(W − M) C^½‖, C = E[x_d x_dᵀ].

    weight: [out, in]; dropped: [rows, in], activation rows with the kept channels at zero. The minimiser is
    M = P Pᵀ W with P the top r eigenvectors of W C Wᵀ, which are the left singular vectors of W x_dᵀ: no
    inverse, so a singular C is welcome, and a prefix of P is the fit of a lower rank.
    """
    outputs = dropped.float() @ weight.float().T  # [rows, out]
    # Scaled, since fp16-sized activations squared can leave fp32's comfortable range.
    outputs = outputs / outputs.abs().amax().clamp_min(1e-30)
    P = leading(outputs.T, rank, seed=seed) if preferred(weight) else top_singular(outputs, rank, seed=seed)[2]
    return P, weight.float().T @ P
