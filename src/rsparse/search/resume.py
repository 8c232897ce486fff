"""An allocation on disk, so that a killed one goes on: where it started, and the KL of each of its trials.

A trial follows from the settings and the KLs before it, so a run that is given these comes to the same next one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rsparse.atomic import write_text
from rsparse.errors import RSparseError
from rsparse.recipe import Recipe


class AllocationFile:
    """What one allocation has measured, in `path`, written as it comes; None keeps it in memory alone.

    `settings` are all that decides it, as JSON has them. Raises RSparseError where `path` is of others, or damaged.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self._start: dict[str, float] | None = None
        self._trials: list[tuple[str, float]] = []
        if path is not None and path.exists():
            self._load(path)

    @property
    def trials(self) -> int:
        """How many KLs there are."""
        return len(self._trials)

    def start(self, make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The level of each unit to start from: kept, or made and kept."""
        if self._start is None:
            self._start = make()
            self._save()
        return self._start

    def kl(self, number: int, recipe: Recipe, judge: Callable[[Recipe], float]) -> float:
        """That of `recipe`, the trial `number`, from 0 and one after the other: kept, or judged and kept."""
        name = recipe.sha()
        if self._trials[number : number + 1] and self._trials[number][0] != name:
            del self._trials[number:]  # of a version that moved otherwise: the KLs from here on are of other trials
        if number == len(self._trials):
            self._trials.append((name, judge(recipe)))
            self._save()
        return self._trials[number][1]

    def _load(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            settings, start = dict(found["settings"]), found["start"]
            trials = [(str(name), float(kl)) for name, kl in found["trials"]]
            levels = {str(name): float(level) for name, level in start.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RSparseError(
                f"cannot read {path}, an allocation's state ({type(error).__name__}: {error}); remove it"
            ) from error
        for name in sorted({*settings, *self.settings}):
            there, here = settings.get(name), self.settings.get(name)
            if there != here:
                raise RSparseError(
                    f"{path} is the state of another allocation: its {name} is {there}, here it is {here}; "
                    "remove it or finish that one"
                )
        self._start, self._trials = levels, trials

    def _save(self) -> None:
        if self.path is not None:
            content = {"settings": self.settings, "start": self._start, "trials": self._trials}
            write_text(self.path, json.dumps(content, allow_nan=False) + "\n")
