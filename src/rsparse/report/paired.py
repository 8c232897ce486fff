"""Comparisons of two records over the same windows or rows; None where they do not pair."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rsparse.errors import RSparseError
from rsparse.evaluation.paired import Interval, above_chance_share, mean_accuracy_difference, perplexity_ratio
from rsparse.evaluation.tasks import TaskScore
from rsparse.report.reading import Record, number, numbers


def ratio(a: Record, b: Record) -> Interval | None:
    """perplexity(a) / perplexity(b), paired over windows."""
    mine, theirs = numbers(a.metrics, "window_nll"), numbers(b.metrics, "window_nll")
    if len(mine) != len(theirs) or len(mine) < 2:
        return None
    try:
        return perplexity_ratio(mine, theirs)
    except OverflowError:  # perplexities too far apart for a float
        return None


def scores(record: Record) -> dict[str, TaskScore] | None:
    """A record's tasks; None where one of them has no rows that pair."""
    tasks = record.metrics.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        return None
    try:
        return {name: _score(name, entry) for name, entry in sorted(tasks.items())}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _score(name: str, entry: Mapping[str, Any]) -> TaskScore:
    score = TaskScore.from_dict(name, dict(entry))
    if not all(rows and all(map(math.isfinite, rows)) for rows in score.rows.values()):
        raise ValueError(f"task {name} has no rows, or some that are no numbers")
    if "chance" in entry and number(entry, "chance") is None:
        raise ValueError(f"task {name} has a chance level that is no number")
    return score


def difference(a: Mapping[str, TaskScore], b: Mapping[str, TaskScore]) -> Interval | None:
    """Mean over the tasks of acc(a) − acc(b)."""
    try:
        return mean_accuracy_difference(a, b) if set(a) == set(b) else None
    except (RSparseError, KeyError):
        return None


def kept(a: Mapping[str, TaskScore], b: Mapping[str, TaskScore]) -> Interval | None:
    """The share of b's accuracy above chance that a keeps."""
    try:
        return above_chance_share(a, b) if set(a) == set(b) else None
    except (RSparseError, KeyError, ValueError):
        return None
