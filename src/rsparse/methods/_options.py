"""A method's options: their names, types and values, checked before a model is at hand."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rsparse import criteria
from rsparse.errors import RSparseError
from rsparse.methods._sources import load
from rsparse.recipe import FITS, GROUPINGS

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a word"}
_NOT_OPTIONS = ("model", "sparsity", "calibration", "state_file")
_CHOICES = {"grouping": GROUPINGS, "fit": FITS}


def parameters(method: str) -> Mapping[str, inspect.Parameter]:
    """What the `prepare` of a method's file takes."""
    return inspect.signature(load(method).prepare).parameters


def checked_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` without those that are None, as the types that `method` takes; strings are read as a command line has them.

    A method's file may have a `check(options)` of its own. Raises RSparseError for an option that the method does not take,
    and for a value that no model would take.
    """
    takes = {name: each for name, each in parameters(method).items() if name not in _NOT_OPTIONS}
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(set(given) - set(takes)):
        raise RSparseError(f"method {method} takes no option {unknown[0]!r}")
    given = {name: _typed(f"method {method}: {name}", value, takes[name].annotation) for name, value in given.items()}
    if "rho" in given and not 0 <= given["rho"] <= 1:
        raise RSparseError(f"rho must be in [0, 1], got {given['rho']}")
    if "criterion" in given:
        criteria.check(given["criterion"])
    for name, known in _CHOICES.items():
        if name in given and given[name] not in known:
            raise RSparseError(f"{name} must be one of {', '.join(known)}, got {given[name]!r}")
    if own := load(method).check:
        own(given)
    return given


def _typed(what: str, value: Any, annotation: Any) -> Any:
    """`value` as `annotation` (a type, or the source's text of it) says; other annotations than _KINDS take everything."""
    annotation = annotation.__name__ if isinstance(annotation, type) else str(annotation).removesuffix(" | None")
    result = value
    try:
        if annotation == "bool" and isinstance(value, str):
            result = _WORDS[value.strip().lower()]
        elif annotation == "int" and isinstance(value, str):
            result = int(value)
        elif annotation == "float" and isinstance(value, (str, int)) and not isinstance(value, bool):
            result = float(value)
    except (ValueError, KeyError):
        raise RSparseError(f"{what} must be {_KINDS[annotation]}, got {value!r}") from None
    kind = {"float": float, "int": int, "bool": bool, "str": str}.get(annotation, object)
    if not isinstance(result, kind) or (kind in (float, int) and isinstance(result, bool)):  # bool is a subclass of int
        raise RSparseError(f"{what} must be {_KINDS[annotation]}, got {value!r}")
    return result
