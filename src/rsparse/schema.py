"""JSON objects to frozen dataclasses, strictly."""

from __future__ import annotations

import dataclasses
from typing import Any

from rsparse.errors import RSparseError


def checked_keys(cls: Any, data: Any, where: str) -> dict[str, Any]:
    """`data` as keyword arguments of the dataclass `cls`.

    Raises RSparseError, naming `where`, on unknown and missing keys and on values of another type.
    """
    if not isinstance(data, dict):
        raise RSparseError(f"{where}: expected an object, found {type(data).__name__}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise RSparseError(f"{where}: unknown key {unknown[0]!r}")
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in data]:
        raise RSparseError(f"{where}: key {missing[0]!r} is missing")
    for name, value in data.items():
        wanted = fields[name].type
        items = value if isinstance(value, (list, tuple)) else ()
        if not isinstance(value, _JSON_TYPES[wanted]) or not all(
            isinstance(item, _ITEM_TYPES.get(wanted, object)) for item in items
        ):
            raise RSparseError(f"{where}: {name!r} has the wrong type, {type(value).__name__}")
    return dict(data)


_NUMBER = (int, float)
_JSON_TYPES: dict[Any, Any] = {
    "bool": bool,
    "str": str,
    "int": int,
    "float": _NUMBER,
    "float | None": (*_NUMBER, type(None)),
    "tuple[int, ...]": (list, tuple),
    "tuple[str, ...]": (list, tuple),
    "Mapping[str, UnitRecipe]": dict,
    "Mapping[str, int]": dict,
    "Mapping[str, float] | None": (dict, type(None)),
    "int | None": (int, type(None)),
}
_ITEM_TYPES: dict[Any, type] = {"tuple[int, ...]": int, "tuple[str, ...]": str}
