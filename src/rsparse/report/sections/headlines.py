"""What to take away from each model, in a sentence a measure and token policy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rsparse.report import labels
from rsparse.report.baselines import Machine, Path, fastest, left_out, over
from rsparse.report.paired import kept, ratio
from rsparse.report.parts import Bullets, Heading, Part, Section, slug
from rsparse.report.reading import Record, number, text
from rsparse.report.task_tables import Scored, TaskTable, task_tables
from rsparse.report.text_tables import Protocol, Row, Text, TextTable, text_tables
from rsparse.reproduce.table import PAPER_METHOD

ORDER, TITLE = 10, "Headlines"
MIDDLE = 0.5  # the level nearest to it is told
AnyTable = TypeVar("AnyTable", TextTable, TaskTable)


def build(records: Sequence[Record]) -> Section | None:
    lines: dict[str, list[str]] = {}
    for table in _texts(text_tables(records)):
        lines.setdefault(table.protocol.model, []).extend(_quality(table))
    for scored in _scored(task_tables(records)):
        lines.setdefault(scored.protocol.model, []).extend(_tasks(scored))
    of_model: dict[str, list[Record]] = {}
    for record in records:
        of_model.setdefault(record.model, []).append(record)
    known = fastest(records)
    for model, mine in of_model.items():
        lines.setdefault(model, []).extend(_speed(mine, known))
    random = {model for model, mine in of_model.items() if all(map(labels.is_random, mine))}
    parts: list[Part] = []
    for model in sorted((model for model, said in lines.items() if said), key=lambda model: (model in random, model)):
        title = f"{model}, random weights" if model in random else model
        parts += [Heading(title, slug(TITLE, model)), Bullets(lines[model])]
    return Section(TITLE, parts) if parts else None


def _texts(tables: Sequence[TextTable]) -> list[TextTable]:
    """For each model and policy, all studies of the same weights and windows together; of several such the widest."""
    pooled: dict[Protocol, list[Row]] = {}
    for table in tables:
        pooled.setdefault(replace(table.protocol, place=""), []).extend(table.rows)
    return _widest([TextTable(key, rows) for key, rows in pooled.items()])


def _scored(tables: Sequence[TaskTable]) -> list[TaskTable]:
    """The same of tasks; the dense model's scores serve all studies of its weights."""
    pooled: dict[Protocol, list[Scored]] = {}
    dense: dict[tuple[str, str], Scored] = {}
    for table in tables:
        pooled.setdefault(replace(table.protocol, place=""), []).extend(table.rows)
        if table.dense is not None:
            dense.setdefault((table.protocol.model, table.protocol.weights), table.dense)
    return _widest([TaskTable(key, dense.get((key.model, key.weights)), rows) for key, rows in pooled.items()])


def _widest(tables: Sequence[AnyTable]) -> list[AnyTable]:
    best: dict[tuple[str, str], AnyTable] = {}
    for table in tables:
        key = table.protocol.model, table.protocol.policy
        if key not in best or _cells(table) > _cells(best[key]):
            best[key] = table
    return list(best.values())


def _cells(table: TextTable | TaskTable) -> int:
    return sum(len(row.cells if isinstance(row, Row) else row.scores) for row in table.rows)


def _quality(table: TextTable) -> list[str]:
    """The method nearest to dense on the most texts that two methods or more have run on, of those that ran on all of them."""
    if not table.levels():
        return []
    asked = min(table.levels(), key=lambda level: (abs(level - MIDDLE), level))
    ran = {id(row): tuple(text for text in table.texts if table.over_dense(row, text)) for row in table.at(asked)}
    shared = max(ran.values(), key=lambda texts: (_rivals(texts, ran.values()), len(texts), list(ran.values()).count(texts)))
    rows = [row for row in table.at(asked) if set(shared) <= set(ran[id(row)])]
    if not shared:
        return []
    means = [statistics.fmean(math.log(table.over_dense(row, text) or 1.0) for text in shared) for row in rows]
    mean, row = min(zip(means, rows, strict=True), key=lambda pair: pair[0])
    over = f"{len(shared)} texts" if len(shared) > 1 else shared[0].title
    rival = (
        f"the closest to dense of {len({each.method for each in rows})} methods" if len(rows) > 1 else "the only method there"
    )
    line = (
        f"Perplexity under `{table.protocol.policy}` at {asked:.0%} asked: **{row.method}** is {rival}, "
        f"×{math.exp(mean):.2f} the dense model's ({'the geometric mean over ' if len(shared) > 1 else ''}{over})"
    )
    return [f"{line}{_cost(row)}.", *_ordering(table, rows, asked, shared)]


def _rivals(texts: Collection[Text], ran: Iterable[Collection[Text]]) -> bool:
    """Whether more than one method ran on all of `texts`."""
    return sum(set(texts) <= set(each) for each in ran) > 1


def _ordering(table: TextTable, rows: Sequence[Row], asked: float, shared: Sequence[Text]) -> list[str]:
    """R-Sparse against the same without its low-rank part, which the paper puts behind."""
    searched = [row for row in rows if labels.bare(_first(row)) == PAPER_METHOD]  # its options may follow
    ours = searched or [row for row in rows if row.method == "rsparse"]
    without = [row for row in rows if row.method == "sparse_only"]
    if not ours or not without:
        return []
    # Of one study, which has one calibration, where there is such a pair; without options where there is such a row.
    pairs = [(mine, theirs) for mine in ours for theirs in without]
    mine, theirs = min(pairs, key=lambda pair: (_folder(pair[0]) != _folder(pair[1]), labels.has_options(_first(pair[0]))))
    found = [each for text in shared if (each := ratio(mine.cells[text], theirs.cells[text])) is not None]
    if not found:
        return []
    ahead, behind = sum(each.high < 1 for each in found), sum(each.low > 1 for each in found)
    mixed = "depends on the text" if ahead and behind else "does not hold" if behind else "cannot be told"
    said = "holds" if ahead == len(found) else mixed
    mean = math.exp(statistics.fmean(math.log(each.value) for each in found))
    return [
        f"The paper's ordering, {_paper_name(mine)} ahead of {theirs.method}, {said} here under `{table.protocol.policy}` at "
        f"{asked:.0%} asked: ×{mean:.3f} its perplexity; by the paired 95 % intervals ahead on {ahead} of {len(found)} texts, "
        f"behind on {behind}."
    ]


def _paper_name(row: Row) -> str:
    """Ours of one rho stands in where nothing was searched."""
    return row.method if labels.bare(_first(row)) == PAPER_METHOD else f"R-Sparse (here {row.method}, not searched)"


def _first(row: Row) -> Record:
    return next(iter(row.cells.values()))


def _folder(row: Row) -> str:
    return _first(row).folder


def _cost(row: Row) -> str:
    records = list(row.cells.values())
    achieved = [each for r in records if (each := number(r.metrics, "achieved_sparsity")) is not None]
    pairs = [(number(r.metrics, "bytes_per_token"), number(r.metrics, "dense_bytes_per_token")) for r in records]
    shares = [size / dense for size, dense in pairs if size and dense]
    words = [f"at {statistics.fmean(achieved):.1%} achieved sparsity"] if achieved else []
    words += [f"reading {statistics.fmean(shares):.1%} of its bytes"] if shares else []
    return f", {', '.join(words)}" if words else ""


def _tasks(table: TaskTable) -> list[str]:
    """The method that keeps the most above chance, among those that ran all tasks."""
    if table.dense is None or not table.levels():
        return []
    asked = min(table.levels(), key=lambda level: (abs(level - MIDDLE), level))
    found = [(share, each) for each in table.at(asked) if (share := kept(each.scores, table.dense.scores)) is not None]
    if not found:
        return []
    share, best = max(found, key=lambda pair: pair[0].value)
    rival = f"the most of {len({each.method for _, each in found})} methods" if len(found) > 1 else "the only method there"
    return [
        f"Tasks under `{table.protocol.policy}` at {asked:.0%} asked: **{best.method}** keeps {share.value:.1%} "
        f"(95 %: {share.low:.1%} to {share.high:.1%}) of the dense model's accuracy above chance, {rival}, over "
        f"{len(best.scores)} tasks."
    ]


def _speed(records: Sequence[Record], known: Mapping[Machine, Path]) -> list[str]:
    """The fastest generation on each machine at the level in the middle and the smallest batch, a loss too; of real weights
    before random ones. A run without the fastest dense path that is known counts only where there is no other."""
    found: dict[tuple[bool, str, str], list[Record]] = {}
    for record in records:
        whole = all(number(record.metrics, name) is not None for name in ("speedup", "tokens_per_second"))
        if whole and not labels.is_dense(record):
            key = labels.is_random(record), record.machine, text(record.config, "dtype")
            found.setdefault(key, []).append(record)
    mixed = len({random for random, *_ in found}) > 1  # else the heading says it
    lines = []
    for (random, machine, dtype), mine in sorted(found.items(), key=lambda pair: pair[0]):

        def rank(record: Record) -> tuple[Any, ...]:
            level = labels.level(record)
            batch, gain = number(record.config, "batch") or 0, number(record.metrics, "speedup") or 0
            return left_out(record, known) is not None, batch, abs(level - MIDDLE), level, -gain

        best = min(mine, key=rank)
        batch = f", batch {text(best.config, 'batch')}" if text(best.config, "batch") else ""
        where = f"{machine}{f', {dtype}' if dtype else ''}{batch}{', random weights' if random and mixed else ''}"
        lines.append(f"Generation on {where}, at {labels.level(best):.0%} asked: {_gain(best)}")
    return lines


def _gain(record: Record) -> str:
    """Tokens a second, and each speed-up with what it is over."""
    metrics = record.metrics
    gain, cublas = number(metrics, "speedup") or 0.0, number(metrics, "speedup_cublas")
    verdict = "faster than" if gain > 1 else "slower than" if gain < 1 else "as fast as"
    path, rate = over(record, "speedup"), number(metrics, "dense_tokens_per_second")
    named = ", ".join(filter(None, [f"`{path}`" if path else "", f"{_rate(rate)} tokens/s" if rate else ""]))
    also = over(record, "speedup_cublas")
    beside = f", and ×{cublas:.2f} the best with cuBLAS (`{also}`)" if cublas is not None and also and also != path else ""
    return (
        f"**{labels.method(record)}** makes {_rate(number(metrics, 'tokens_per_second') or 0.0)} tokens/s, {verdict} dense: "
        f"×{gain:.2f} the best dense path of its run{f' ({named})' if named else ''}{beside}."
    )


def _rate(value: float) -> str:
    """As one would say it: 1,125, 320, 11.1."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
