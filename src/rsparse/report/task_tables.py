"""Task records, arranged as they may stand in one table: one folder, model and token policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rsparse.evaluation.tasks import TaskScore
from rsparse.report import labels
from rsparse.report.paired import scores
from rsparse.report.reading import Record
from rsparse.report.text_tables import Protocol, protocol


@dataclass(frozen=True)
class Scored:
    """A record and its tasks' rows."""

    record: Record
    scores: Mapping[str, TaskScore]

    @property
    def method(self) -> str:
        return labels.method(self.record)

    @property
    def asked(self) -> float:
        return labels.level(self.record)


@dataclass(frozen=True)
class TaskTable:
    """`dense` was measured under no policy, since it is the same under all."""

    protocol: Protocol
    dense: Scored | None
    rows: Sequence[Scored]

    @property
    def names(self) -> list[str]:
        measured = [*self.rows, *([self.dense] if self.dense else [])]
        return sorted({name for each in measured for name in each.scores})

    def levels(self) -> list[float]:
        return sorted({each.asked for each in self.rows})

    def at(self, asked: float) -> list[Scored]:
        return [each for each in self.rows if each.asked == asked]


def task_tables(records: Sequence[Record]) -> list[TaskTable]:
    """By model, folder and policy; the dense model's scores join each of its folder's tables, or stand alone."""
    found: dict[Protocol, list[Scored]] = {}
    dense: dict[tuple[str, ...], Scored] = {}
    for record in records:
        if (tasks := scores(record)) is None:
            continue
        scored = Scored(record, tasks)
        if labels.is_dense(record):
            dense.setdefault(_weights(protocol(record)), scored)
        else:
            found.setdefault(protocol(record), []).append(scored)
    for scored in dense.values():
        key = protocol(scored.record)
        if all(_weights(each) != _weights(key) for each in found):
            found[key] = []
    tables = []
    for key in sorted(found, key=lambda key: tuple(vars(key).values())):
        rows = sorted(found[key], key=lambda each: (each.asked, each.method, each.record.path))
        tables.append(TaskTable(key, dense.get(_weights(key)), rows))
    return tables


def _weights(key: Protocol) -> tuple[str, ...]:
    return key.model, key.place, key.weights, key.dtype
