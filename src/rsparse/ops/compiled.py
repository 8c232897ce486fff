"""torch.compile for functions of many elementwise passes, with the plain function where it cannot compile."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from rsparse.errors import out_of_memory


class Compiled:
    """`function`, compiled at its first call on a GPU. On a CPU, and after a failure to compile, the plain function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self._compiled: Callable[..., Any] | None = None
        self._failed = False

    def __call__(self, x: torch.Tensor, *args: Any) -> Any:
        if not compiles_on(x) or self._failed or torch.compiler.is_compiling():
            return self.function(x, *args)
        try:
            if self._compiled is None:
                self._compiled = torch.compile(self.function, dynamic=True)
            return self._compiled(x, *args)
        except Exception as error:  # no compiler, no Triton, an old GPU: whatever else it is, the plain function says it better
            if out_of_memory(error):
                raise
            self._failed = True
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            warnings.warn(f"torch.compile failed ({reason[:200]}); evaluation goes on without it, slower", stacklevel=2)
            return self.function(x, *args)


def compiles_on(x: torch.Tensor) -> bool:
    """On a CPU the eager passes are few, and a compiler may be missing."""
    return x.is_cuda
