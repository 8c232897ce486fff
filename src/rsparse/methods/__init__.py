"""Methods: presets and baselines, one a file, found by its name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any, Protocol

from rsparse.errors import RSparseError
from rsparse.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Method(Protocol):
    """The function `prepare` of a method's file."""

    def __call__(self, model: PreTrainedModel, sparsity: float, **options: Any) -> Recipe:
        """A recipe for `model` at `sparsity` of the bytes of its blocks' linears."""


def names() -> list[str]:
    """Methods that have a file here."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def make_recipe(model: PreTrainedModel, method: str, sparsity: float, **options: Any) -> Recipe:
    """`method`'s recipe for `model`. Raises RSparseError for a method, option or level that does not exist."""
    if method not in names():
        raise RSparseError(f"method {method!r} is unknown; choose one of {', '.join(names())}")
    if not 0 <= sparsity < 1:
        raise RSparseError(f"sparsity must be in [0, 1), got {sparsity}")
    prepare: Method = importlib.import_module(f"{__name__}.{method}").prepare
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(set(given) - set(inspect.signature(prepare).parameters)):
        raise RSparseError(f"method {method} takes no option {unknown[0]!r}")
    return prepare(model, sparsity, **given)
