"""Where methods come from: files here, and entry points of other packages in the group `rsparse.methods`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, NamedTuple

from rsparse import methods
from rsparse.errors import RSparseError

GROUP = "rsparse.methods"


class Source(NamedTuple):
    """A method's function `prepare`, and `check` of its options where it has one."""

    prepare: Callable[..., Any]
    check: Callable[[Mapping[str, Any]], None] | None


def files() -> list[str]:
    """Methods that have a file here, without an underscore before their name."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__) if not module.name.startswith("_"))


@functools.cache
def plugins() -> dict[str, EntryPoint]:
    """Methods of other packages, by name, nothing of them imported. A name that is taken here, or that cannot stand on a
    command line, is left out: see `left_out`."""
    return {point.name: point for point in reversed(_points()) if not _fault(point)}


def left_out() -> list[str]:
    """A line for each entry point that is no method, and why."""
    return [f"{_whose(point)}: {fault}" for point in _points() if (fault := _fault(point))]


def load(method: str) -> Source:
    """Raises RSparseError for a method of another package that does not load: its fault, named."""
    if method in files():
        return _source(importlib.import_module(f"{methods.__name__}.{method}"))
    point = plugins()[method]
    try:
        return _source(point.load())
    except Exception as error:  # whatever a foreign package does at import
        reason = str(error).strip().splitlines()
        raise RSparseError(f"{_whose(point)} does not load: {type(error).__name__}: {reason[0] if reason else ''}") from error


def _source(found: Any) -> Source:
    """Of a module with `prepare` (and `check`), or of the function itself."""
    prepare = getattr(found, "prepare", None) if isinstance(found, ModuleType) else found
    if not callable(prepare):
        raise TypeError("it is neither a module with a function `prepare` nor such a function")
    return Source(prepare, getattr(found, "check", None))


def _points() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def _fault(point: EntryPoint) -> str:
    if point.name in files():
        return "rsparse has a method of that name itself"
    return "" if re.fullmatch(r"[a-z]\w*", point.name) else "its name must be a lower-case letter, then letters, digits and _"


def _whose(point: EntryPoint) -> str:
    package = f" of package {point.dist.name}" if point.dist is not None else ""
    return f"method {point.name!r}{package}"
