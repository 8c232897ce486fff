"""How far two results may be apart: one number a dtype, as relative RMS."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE_RMS = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in fp64; 0 where both are zero."""
    assert actual.shape == expected.shape, f"shapes {tuple(actual.shape)} and {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if float(difference) != 0 else 0.0


def assert_close_rms(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """`dtype` is the coarsest one on the way, not necessarily that of the tensors."""
    error = relative_rms(actual, expected)
    assert error <= RELATIVE_RMS[dtype], f"relative RMS {error:.2e} is above {RELATIVE_RMS[dtype]:.0e} for {dtype}"
