"""An allocation on disk, so that a killed one goes on: the levels that it starts from, and the KL of each of its trials.

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
from rsparse.same import check_same


class AllocationFile:
    """What one allocation has measured, in `path`, written as it comes; None keeps it in memory alone.

    `settings` are all that decides it, as JSON has them. Raises RSparseError where `path` is of others, or damaged.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self._blocks: list[dict[str, float]] = []
        self._trials: list[tuple[str, float]] = []
        if path is not None and path.exists():
            self._load(path)

    @property
    def trials(self) -> int:
        """How many KLs there are."""
        return len(self._trials)

    @property
    def blocks(self) -> list[dict[str, float]]:
        """Of the first blocks, the level of each unit to start from."""
        return list(self._blocks)

    def add_block(self, levels: dict[str, float]) -> None:
        """Keep the next block's."""
        self._blocks.append(levels)
        self._save()

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
            settings = dict(found["settings"])
            blocks = [{str(name): float(level) for name, level in block.items()} for block in found["blocks"]]
            trials = [(str(name), float(kl)) for name, kl in found["trials"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RSparseError(
                f"cannot read {path}, an allocation's state ({type(error).__name__}: {error}); remove it"
            ) from error
        subject = f"{path} is the state of another allocation"
        check_same(subject, settings, self.settings, {*settings, *self.settings}, "remove it or finish that one")
        self._blocks, self._trials = blocks, trials

    def _save(self) -> None:
        if self.path is not None:
            content = {"settings": self.settings, "blocks": self._blocks, "trials": self._trials}
            write_text(self.path, json.dumps(content, allow_nan=False) + "\n")
