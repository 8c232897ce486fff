"""Which fused ops run on a device."""

from __future__ import annotations

import warnings

import torch

from rsparse.ops import dispatch
from rsparse.ops.fused.reference import ReferenceOps
from rsparse.ops.fused.types import FusedOps


def fused_ops(backend: str, device: torch.device, *, dense: bool = False) -> FusedOps:
    """The ops of `backend`, a name that `rsparse.ops.dispatch.resolve` gave: `triton`, or the reference for any other; with
    `dense` those for a dense model, whose weights lie by output row.

    Scratch memory belongs to the returned object: one for each stream that steps run on.
    """
    if backend == "triton":
        from rsparse.ops.fused.cuda import compiler
        from rsparse.ops.fused.cuda.ops import CudaOps, CudaRowOps
        from rsparse.ops.fused.rows import RowOps
        from rsparse.ops.fused.triton_ops import TritonOps

        why = compiler.refusal(device)
        if why is None:
            return CudaRowOps(device) if dense else CudaOps(device)
        if dense:
            return RowOps(device)
        if device.type == "cuda":
            warnings.warn(f"sparse linears take two launches each: {why}", stacklevel=2)
        return TritonOps(device)
    return ReferenceOps()


def refusal(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the fused ops of `backend` cannot run a model there, or None."""
    why = dispatch.refusal(backend, device, dtype)
    if why is None and backend == "triton" and (head_dim % 2 or head_dim > 256):
        return f"its attention has heads of up to 256, even in size, not {head_dim}"
    return why
