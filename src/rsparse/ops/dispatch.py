"""Which backend runs: chosen once, when a model becomes sparse."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rsparse import ops
from rsparse.errors import RSparseError
from rsparse.ops.mask_rows import MaskedRows

_SUFFIX = "_kernel"


@dataclass(frozen=True)
class Backend:
    """The ops of one backend; reference.py documents each. A plain object: modules can be neither copied nor pickled.

    Up to `gather_rows` rows go through select and gather_gemv, more through mask_rows and masked_gemm: the same function.
    `prepare`, where a backend has it, puts the weights of the linears that it is given into the storage that it reads.
    """

    name: str
    gather_rows: int
    pack: Callable[..., Any]
    mask_rows: Callable[..., MaskedRows]
    select: Callable[..., Any]
    gather_gemv: Callable[..., torch.Tensor]
    masked_gemm: Callable[..., torch.Tensor]
    prepare: Callable[..., None] | None = None


def backends() -> list[str]:
    """`reference`, then each backend that has a file `<name>_kernel.py` here."""
    names = (module.name for module in pkgutil.iter_modules(ops.__path__))
    return ["reference", *sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))]


def refusal(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `name` cannot run there, or None where it can."""
    if name == "reference":
        return None
    if name not in backends():
        return f"this rsparse has no backend {name!r}; it has {', '.join(backends())}"
    why: str | None = importlib.import_module(f"rsparse.ops.{name}{_SUFFIX}").refusal(device, dtype)
    return why


def resolve(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend called `name`; `auto` takes the first kernel that does not refuse, else the reference.

    Raises RSparseError where a backend asked for by name cannot run.
    """
    candidates = [*backends()[1:], "reference"] if name == "auto" else [name]
    for candidate in candidates:
        why = refusal(candidate, device, dtype)
        if why is None:
            module = importlib.import_module(f"rsparse.ops.{candidate if candidate == 'reference' else candidate + _SUFFIX}")
            ops = ("pack", "mask_rows", "select", "gather_gemv", "masked_gemm")
            functions = [*(getattr(module, op) for op in ops), getattr(module, "prepare", None)]
            return Backend(candidate, module.GATHER_ROWS, *functions)
    raise RSparseError(f"backend {name}: {why}")
