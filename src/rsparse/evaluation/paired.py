"""Differences between two models on the same rows, with 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsparse.errors import RSparseError
from rsparse.evaluation.tasks import TaskScore

Z = 1.959964  # 97.5 % of the normal distribution
RESAMPLES = 10_000
LEAST_ABOVE_CHANCE = 1e-4  # mean accuracy above chance below which there is nothing to keep a share of


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in vars(self).items()}


def mean_difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """mean(a − b) over paired rows, by the normal approximation. Raises RSparseError where the rows do not pair."""
    if len(a) != len(b) or len(a) < 2:
        raise RSparseError(f"cannot pair {len(a)} rows with {len(b)}; run both models on the same two rows or more")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    mean, error = float(difference.mean()), float(difference.std(ddof=1) / math.sqrt(len(difference)))
    return Interval(mean, mean - Z * error, mean + Z * error)


def perplexity_ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
    """perplexity(a) / perplexity(b), from windows of equal length by their mean −log p; the interval is over windows."""
    found = mean_difference(a, b)
    return Interval(*(bounded_exp(value) for value in (found.value, found.low, found.high)))


def bounded_exp(value: float) -> float:
    """e^value, or 1e304 where that is past what a float holds: a perplexity so bad is still a figure."""
    return math.exp(min(value, 700.0))


def mean_accuracy_difference(a: Mapping[str, TaskScore], b: Mapping[str, TaskScore]) -> Interval | None:
    """The mean over tasks of acc's difference, each task weighing the same; tasks are independent. None without such a task."""
    names = [name for name, score in b.items() if "acc" in score.rows]
    if not names:
        return None
    parts = [mean_difference(a[name].rows["acc"], b[name].rows["acc"]) for name in names]
    mean = sum(part.value for part in parts) / len(parts)
    error = math.sqrt(sum(((part.high - part.value) / Z) ** 2 for part in parts)) / len(parts)
    return Interval(mean, mean - Z * error, mean + Z * error)


def above_chance_share(a: Mapping[str, TaskScore], b: Mapping[str, TaskScore], *, seed: int = 0) -> Interval:
    """How much of b's accuracy above chance a keeps: Σ(acc_a − chance) / Σ(acc_b − chance) over the tasks with choices.

    The interval is the percentile bootstrap over paired rows, task by task. Raises RSparseError without such a
    task, and where b is not above chance.
    """
    names = [name for name, score in b.items() if score.chance is not None]
    if not names:
        raise RSparseError("no task here has choices, so that there is no chance level to be above")
    generator = np.random.default_rng(seed)
    totals = np.zeros((2, RESAMPLES + 1))
    for name in names:
        chance = b[name].chance
        assert chance is not None
        rows = np.array([a[name].rows["acc"], b[name].rows["acc"]])
        # A resample is a count of each of the four outcomes of a pair.
        outcomes, counts = np.unique(rows, axis=1, return_counts=True)
        n = rows.shape[1]
        drawn = np.vstack([counts, generator.multinomial(n, counts / n, size=RESAMPLES)])
        totals += outcomes @ drawn.T / n - chance
    if totals[1, 0] <= LEAST_ABOVE_CHANCE * len(names):
        raise RSparseError("the second model is not above chance on these tasks, so that there is nothing to keep")
    shares = totals[0] / np.where(totals[1] > 0, totals[1], np.nan)
    low, high = np.nanpercentile(shares[1:], [2.5, 97.5])
    return Interval(float(shares[0]), float(low), float(high))


def compare_tasks(a: Mapping[str, TaskScore], b: Mapping[str, TaskScore]) -> dict[str, Any]:
    """The record's entry: the difference a − b by task and in the mean, and the share above chance that a keeps."""
    if set(a) != set(b):
        raise RSparseError(f"the two models ran other tasks: {', '.join(sorted(set(a) ^ set(b)))} on one side only")
    if other := [name for name in b if a[name].primary != b[name].primary]:
        raise RSparseError(
            f"task {other[0]} is not the same: {a[other[0]].primary} on one side, {b[other[0]].primary} on the other"
        )
    found: dict[str, Any] = {
        name: {"metric": score.primary, **mean_difference(a[name].rows[score.primary], score.rows[score.primary]).to_dict()}
        for name, score in b.items()
    }
    mean = mean_accuracy_difference(a, b)
    result: dict[str, Any] = {"difference": found, "mean_difference": None if mean is None else mean.to_dict()}
    try:
        result["above_chance_share"] = above_chance_share(a, b).to_dict()
    except RSparseError as reason:
        result["above_chance_share"] = None
        result["above_chance_note"] = str(reason)
    return result
