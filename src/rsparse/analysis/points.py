"""The points of one study: a small JSON each, kept as they come, so that a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rsparse.atomic import write_text
from rsparse.benchmark.settings import SETTINGS_FILE, keep_parts
from rsparse.errors import RSparseError


class Points:
    """Raises RSparseError where `folder` holds points of other settings."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        keep_parts(folder, {"settings": settings})

    def get(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The point `name`: read where it is there, else made and kept. Raises RSparseError for a damaged file."""
        path = self._path(name)
        if not path.exists():
            write_text(path, json.dumps(make(), allow_nan=False) + "\n")
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RSparseError(f"{path} is damaged ({error}); delete it to measure it again") from error
        return found

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def _path(self, name: str) -> Path:
        assert name != Path(SETTINGS_FILE).stem
        return self.folder / f"{name}.json"
