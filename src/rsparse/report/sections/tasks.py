"""Accuracy on tasks, with intervals, and how much of it above chance is kept."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rsparse.evaluation.paired import Interval, Z
from rsparse.evaluation.tasks import PRIMARY, TaskScore
from rsparse.report.labels import level_title
from rsparse.report.paired import difference, kept
from rsparse.report.parts import EMPTY, Cell, Column, Paragraph, Part, Rows, Section, Table, headings
from rsparse.report.reading import Record, number
from rsparse.report.task_tables import Scored, TaskTable, task_tables

ORDER, TITLE = 50, "Tasks"
INTRO = (
    "Each task's main metric in percent, higher is better, ± its 95 % interval over rows. The mean weighs tasks equally; its "
    "difference from the dense model in percentage points, and the share of the dense model's accuracy above chance that is "
    "kept, have 95 % intervals paired over rows. **best** is the highest of its level in a column, **tie** "
    "a mean whose paired 95 % interval against the best holds 0; in a task's own column, a difference below its interval says "
    "nothing. Under `decode` only the answer's tokens run sparse; under `all` "
    "the question's too. The dense model does not depend on the policy."
)


def build(records: Sequence[Record]) -> Section | None:
    tables = task_tables(records)
    if not tables:
        return None
    parts: list[Part] = [Paragraph(INTRO)]
    used: set[str] = set()
    for heading, table in zip(headings(TITLE, [table.protocol.model for table in tables]), tables, strict=True):
        parts += [*heading, _table(table), *_normalised(table)]
        used |= {each.record.path for each in table.rows} | ({table.dense.record.path} if table.dense else set())
    return Section(TITLE, parts, frozenset(used))


def _table(table: TaskTable) -> Table:
    names = table.names
    columns = [Column("method", numeric=False), Column("achieved", "%"), Column("mean", "%"), Column("from dense", "points")]
    columns += [Column("kept", "%, above chance"), *(_column(name, table) for name in names)]
    groups = [Rows("dense", [_row(table, table.dense, names, None, {})] if table.dense else [])]
    for asked in table.levels():
        rows = table.at(asked)
        whole = [each for each in rows if set(each.scores) == set(names)]
        best = max(whole, key=_mean) if len(whole) > 1 else None
        highest = {name: max((s.mean(s.primary) for r in rows if (s := r.scores.get(name))), default=0.0) for name in names}
        highest = highest if len(rows) > 1 else {}
        groups.append(Rows(level_title(asked, dense=False), [_row(table, each, names, best, highest) for each in rows]))
    caption = f"{table.protocol.model}: {table.protocol.words}. Records of {table.protocol.place}."
    return Table(caption, columns, [group for group in groups if group.rows])


def _row(table: TaskTable, each: Scored, names: Sequence[str], best: Scored | None, highest: Mapping[str, float]) -> list[Cell]:
    achieved = number(each.record.metrics, "achieved_sparsity")
    cells = [Cell(each.method), EMPTY if achieved is None else Cell(f"{100 * achieved:.1f}", sort=achieved)]
    by_task = [_score(each.scores[name], highest.get(name)) if name in each.scores else EMPTY for name in names]
    if set(each.scores) != set(names):
        return [*cells, EMPTY, EMPTY, EMPTY, *by_task]  # a mean over other tasks is another figure
    mark = "" if best is None else "best" if best is each else _tie(each, best)
    cells.append(Cell(_percent(_mean(each)), mark=mark, sort=_mean(each)))
    if table.dense is None or each is table.dense:
        return [*cells, EMPTY, EMPTY, *by_task]
    cells.append(_interval(difference(each.scores, table.dense.scores), "+"))
    return [*cells, _interval(kept(each.scores, table.dense.scores)), *by_task]


def _normalised(table: TaskTable) -> list[Part]:
    """acc_norm, folded: the main table has acc."""
    measured = [*([table.dense] if table.dense else []), *table.rows]
    names = sorted({name for each in measured for name, score in each.scores.items() if "acc_norm" in score.rows})
    if not names:
        return []
    groups: dict[str, list[list[Cell]]] = {}
    for each in measured:
        found = [each.scores.get(name) for name in names]
        values = [score.mean("acc_norm") if score and "acc_norm" in score.rows else None for score in found]
        cells = [EMPTY if value is None else Cell(_percent(value), sort=value) for value in values]
        groups.setdefault(level_title(each.asked, dense=each is table.dense), []).append([Cell(each.method), *cells])
    columns = [Column("method", numeric=False), *(Column(name, "acc_norm, %") for name in names)]
    caption = f"{table.protocol.model}: acc_norm (log-likelihood per character), {table.protocol.words}"
    return [Table(caption, columns, [Rows(title, rows) for title, rows in groups.items()], folded="The same with acc_norm")]


def _column(name: str, table: TaskTable) -> Column:
    score = next(s for s in (each.scores.get(name) for each in [table.dense, *table.rows] if each) if s)
    chance = f"\nchance {100 * score.chance:.0f}" if score.chance is not None else ""
    unit = ", %" if score.primary in PRIMARY else ""
    return Column(name, f"{score.primary}{unit}\nn {len(score.rows[score.primary])}{chance}")


def _score(score: TaskScore, highest: float | None) -> Cell:
    rows = score.rows[score.primary]
    value, scale = score.mean(score.primary), 100 if score.primary in PRIMARY else 1
    error = scale * Z * statistics.stdev(rows) / len(rows) ** 0.5 if len(rows) > 1 else None
    return Cell(f"{scale * value:.1f}", "" if error is None else f"± {error:.1f}", "best" if value == highest else "", value)


def _mean(each: Scored) -> float:
    return statistics.fmean(score.mean(score.primary) for score in each.scores.values())


def _tie(each: Scored, best: Scored) -> str:
    found = difference(each.scores, best.scores)
    return "tie" if found is not None and found.low <= 0 <= found.high else ""


def _interval(found: Interval | None, sign: str = "") -> Cell:
    if found is None:
        return EMPTY
    value, low, high = (f"{100 * each:{sign}.1f}".replace("-", "−") for each in (found.value, found.low, found.high))
    return Cell(value, f"{low} to {high}", sort=found.value)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
