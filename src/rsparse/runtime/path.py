"""Which path a call of `generate` takes: the model's own modules, or the fused decode step."""

from __future__ import annotations

import sys
from typing import Any

from rsparse.errors import RSparseError, out_of_memory
from rsparse.models.layout import head_dim
from rsparse.ops import dispatch
from rsparse.ops.fused import refusal
from rsparse.runtime import fused
from rsparse.runtime.request import Request
from rsparse.sparse_model import RecipeState

KERNELS = "triton"  # the one backend with fused ops


def session_for(model: Any, request: Request, backend: str) -> fused.Session | None:
    """A session of the fused step for `request`, or None for the model's own modules.

    Raises RSparseError where `backend` names kernels that do not cover the model or the call; `auto` says so on stderr.
    """
    if backend not in ("auto", *dispatch.backends()):
        raise RSparseError(f"backend {backend!r} is unknown; choose auto or one of {', '.join(dispatch.backends())}")
    weight = next(model.parameters())
    if backend not in ("auto", KERNELS) or (backend == "auto" and (not on_gpu(model) or _without_kernels(model))):
        return None
    why = refusal(KERNELS, weight.device, weight.dtype, head_dim(model)) or fused.refusal(
        model,
        request.token_policy,
        rows=request.rows,
        shortest=int(request.attention_mask.sum(1).min()),
        sampled=request.temperature > 0,
    )
    if why is None:
        try:
            return make_session(model, request, KERNELS)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            fused.release(model)
            why = f"out of GPU memory ({str(error).splitlines()[0][:150]})"
    if backend == KERNELS:
        raise RSparseError(f"backend {KERNELS}: {why}")
    sys.stderr.write(f"new tokens run without kernels: {why}\n")
    return None


def make_session(model: Any, request: Request, ops: str) -> fused.Session:
    """The session, by the fused ops of that name; packs the model and captures the step where that is not done yet."""
    sampling = fused.Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        penalty=float(getattr(model.generation_config, "repetition_penalty", None) or 1.0),
        eos=tuple(sorted(request.eos)),
        pad=request.pad,
    )
    tokens = request.input_ids.shape[1] + request.max_new_tokens
    return fused.fused_model(model, ops).session(model, request.rows, tokens, sampling)


def on_gpu(model: Any) -> bool:
    return bool(next(model.parameters()).is_cuda)


def _without_kernels(model: Any) -> bool:
    """Whether the sparse linears were put on the reference by name: then that is what was asked for here too."""
    found = getattr(model, "rsparse", None)
    weight = next(model.parameters())
    kernels = dispatch.refusal(KERNELS, weight.device, weight.dtype) is None
    return isinstance(found, RecipeState) and found.backend == "reference" and kernels
