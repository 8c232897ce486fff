"""Whether what is on disk is of the work at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rsparse.errors import RSparseError


def check_same(subject: str, there: Mapping[str, Any], here: Mapping[str, Any], keys: Iterable[str], remedy: str) -> None:
    """Raises RSparseError, with `subject` before the first of `keys` whose value is another and `remedy` behind it."""
    for key in sorted(keys):
        if there.get(key) != here.get(key):
            raise RSparseError(f"{subject}: its {key} is {there.get(key)}, here it is {here.get(key)}; {remedy}")
