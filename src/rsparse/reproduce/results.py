"""The records of a table, read back by line, policy and text."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsparse.benchmark.failures import failure
from rsparse.errors import RSparseError
from rsparse.evaluation.paired import Interval, mean_accuracy_difference, mean_difference, perplexity_ratio
from rsparse.evaluation.tasks import TaskScore
from rsparse.reproduce.request import Line, Request, folder_of
from rsparse.reproduce.table import Table
from rsparse.token_policy import TokenPolicy

Record = dict[str, Any]
APART = 0.01  # of sparsity: beyond it the bytes are not those that were asked, nor those of another line

# The paper's eight, as its tables head them; the first name that was run counts.
TASKS = {
    "WG": ("winogrande",),
    "PIQA": ("piqa",),
    "SciQ": ("sciq",),
    "OBQA": ("openbookqa",),
    "HS": ("hellaswag_spread", "hellaswag"),
    "BoolQ": ("boolq",),
    "ARC-e": ("arc_easy",),
    "ARC-c": ("arc_challenge",),
}


class Results:
    """One table's, of one model. A cell that has not run or failed has no record; one that its method refuses has a reason.

    Several folders of one protocol are read as one: a cell's record is the first that is there.
    """

    def __init__(self, table: Table, request: Request, *folders: Path) -> None:
        self.table, self.request, self.folders = table, request, folders
        self.lines = request.lines(table)
        self._read: dict[Path, Record | None] = {}
        self._scores: dict[Path, dict[str, TaskScore]] = {}

    def record(self, line: Line, policy: TokenPolicy, text: str | None) -> Record | None:
        """Raises RSparseError for a file that is no record."""
        path = self._path(line, policy, text)
        if path not in self._read:
            self._read[path] = _load(path)
        return self._read[path]

    def refusal(self, line: Line, policy: TokenPolicy, text: str | None) -> str | None:
        """Why its method refuses a cell, None where it does not."""
        record = self.record(line, policy, text)
        return None if record is None else record["metrics"].get("refused")

    def failure(self, line: Line, policy: TokenPolicy, text: str | None) -> str | None:
        """Why the last try of a cell failed; None where it has a record, or was not tried."""
        paths = self._paths(line, policy, text)
        if any(path.exists() for path in paths):
            return None
        return next((reason for path in paths if (reason := failure(path))), None)

    def config(self, line: Line) -> dict[str, Any] | None:
        """Of one of a line's records with figures; all have the same recipe."""
        wanted = [*([None] if self.has_tasks(line) else []), *self.texts(line)]
        cells = ((policy, text) for policy in self.request.policies for text in wanted)
        found = (record for cell in cells if (record := self.record(line, *cell)) and "refused" not in record["metrics"])
        return next((record["config"] for record in found), None)

    def _path(self, line: Line, policy: TokenPolicy, text: str | None) -> Path:
        paths = self._paths(line, policy, text)
        return next((path for path in paths if path.exists()), paths[0])

    def _paths(self, line: Line, policy: TokenPolicy, text: str | None) -> list[Path]:
        cell = self.request.cell(line, policy, text)
        return [cell.path(folder_of(folder, line.variant)) for folder in self.folders]

    def texts(self, line: Line) -> tuple[str, ...]:
        return self.request.texts if self.request.measures(self.table, line.variant)[1] else ()

    def has_tasks(self, line: Line) -> bool:
        return self.request.measures(self.table, line.variant)[0]

    def scores(self, line: Line, policy: TokenPolicy) -> dict[str, TaskScore] | None:
        """By the head of a column: of the paper's tasks those that were run, of all where there is none of those."""
        record = self.record(line, policy, None) if self.has_tasks(line) else None
        if record is None or "tasks" not in record["metrics"]:
            return None
        path = self._path(line, policy, None)
        if path not in self._scores:
            entries = record["metrics"]["tasks"].items()
            self._scores[path] = picked({name: TaskScore.from_dict(name, entry) for name, entry in entries})
        return self._scores[path]

    def metrics(self, line: Line, policy: TokenPolicy, text: str | None) -> dict[str, Any] | None:
        """Of a cell with figures."""
        record = self.record(line, policy, text)
        return None if record is None or "refused" in record["metrics"] else record["metrics"]

    def achieved(self, line: Line, policy: TokenPolicy, *, texts: bool = False) -> float | None:
        """Measured sparsity: over the tasks, or with `texts` the mean over those, which can differ."""
        wanted = self.texts(line) if texts else (None,) if self.has_tasks(line) else ()
        cells = [self.metrics(line, policy, text) for text in wanted]
        found = [cell["achieved_sparsity"] for cell in cells if cell is not None and "achieved_sparsity" in cell]
        return statistics.fmean(found) if found else None

    def accuracy_difference(self, a: Line, b: Line, policy: TokenPolicy) -> Interval | None:
        """a − b in points (of a hundred), each task weighing the same; None where one of them has no figures."""
        mine, theirs = self.scores(a, policy), self.scores(b, policy)
        if mine is None or theirs is None or set(mine) != set(theirs):
            return None
        found = mean_accuracy_difference(mine, theirs)
        if found is None:  # tasks that generate
            pairs = [mean_difference(mine[name].rows[each.primary], each.rows[each.primary]) for name, each in theirs.items()]
            found = pairs[0] if len(pairs) == 1 else None
        return None if found is None else Interval(100 * found.value, 100 * found.low, 100 * found.high)

    def perplexity_ratio(self, a: Line, b: Line, policy: TokenPolicy) -> Interval | None:
        """Perplexity of a over that of b, over the windows of all texts; None where one of them lacks a text."""
        mine, theirs = [], []
        for text in self.texts(a):
            pair = self.metrics(a, policy, text), self.metrics(b, policy, text)
            if pair[0] is None or pair[1] is None:
                return None
            mine += pair[0]["window_nll"]
            theirs += pair[1]["window_nll"]
        return perplexity_ratio(mine, theirs) if len(mine) > 1 else None


def absent(reason: str) -> str:
    """In a word or two, why there is no figure where a method refuses it."""
    return "below its floor" if "floor" in reason else "not possible"


def picked(scores: Mapping[str, TaskScore]) -> dict[str, TaskScore]:
    """The paper's tasks under their heads; all tasks where none of those is among them."""
    found = {head: next((scores[name] for name in names if name in scores), None) for head, names in TASKS.items()}
    mine = {head: score for head, score in found.items() if score is not None}
    return mine or dict(scores)


def mean_score(scores: Mapping[str, TaskScore]) -> float:
    """In percent, each task weighing the same: acc, or what the task is about."""
    return 100 * statistics.fmean(score.mean(score.primary) for score in scores.values())


def _load(path: Path) -> Record | None:
    if not path.exists():
        return None
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        record["config"]["suite"], record["metrics"].get("refused")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RSparseError(f"{path} is not a result record ({type(error).__name__}: {error}); move it away") from error
    return record
