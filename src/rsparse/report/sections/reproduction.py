"""The paper's tables as `rsparse reproduce` has them: whether its ordering holds, and published figures beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsparse.analysis.quality_table import figure
from rsparse.report.labels import level_title
from rsparse.report.parts import EMPTY, Bullets, Cell, Column, Heading, Paragraph, Part, Rows, Section, Table, slug
from rsparse.report.reading import Record, Values, number, text

ORDER, TITLE = 55, "The paper's tables"
INTRO = (
    "Published figures are of other models, each named, and stand only beside figures of their own token policy. The measured "
    "cells behind a row are in the sections of their kind."
)


def build(records: Sequence[Record]) -> Section | None:
    mine = [r for r in records if text(r.config, "suite") == "reproduce" and _rows(r)]
    if not mine:
        return None
    parts: list[Part] = [Paragraph(INTRO)]
    for record in sorted(mine, key=lambda r: (r.model, text(r.config, "table"), r.path)):
        title = f"{text(record.config, 'table').replace('_', ' ')}, {record.model}"
        parts.append(Heading(title[:1].upper() + title[1:], slug(TITLE, record.path.removesuffix(".json"))))
        lines = record.metrics.get("lines")
        parts.append(Bullets([str(line) for line in lines] if isinstance(lines, list) else []))
        policies = dict.fromkeys(policy for row in _rows(record) for policy in row["policies"])
        parts += [_table(record, policy) for policy in policies]
    return Section(TITLE, parts, frozenset(record.path for record in mine))


def _rows(record: Record) -> list[dict[str, Any]]:
    """Empty where one of them is not as it should be."""
    rows = record.metrics.get("rows")
    whole = isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("policies"), dict) for row in rows)
    return list(rows) if whole and rows else []


def _table(record: Record, policy: str) -> Table:
    rows = [(row, _part(row["policies"], policy)) for row in _rows(record)]
    texts = list(dict.fromkeys(name for _, found in rows for name in _part(found, "perplexity")))
    scored = any(number(found, "mean") is not None for _, found in rows)
    published = any(_published(found) for _, found in rows)
    varied = any(text(row, "variant") for row, _ in rows)
    columns = [Column("method", numeric=False)]
    columns += [Column("variant", numeric=False)] if varied else []
    columns.append(Column("achieved", "%"))
    columns += [Column("mean", "% over the tasks")] if scored else []
    columns += [Column(name, "perplexity") for name in texts]
    columns += [Column("published", numeric=False)] if published else []
    groups: dict[float, list[list[Cell]]] = {}
    for row, found in rows:
        cells = [Cell(text(row, "preset"), "; ".join(_reasons(found)))]
        cells += [Cell(text(row, "variant"))] if varied else []
        cells.append(_percent(number(found, "achieved_sparsity"), 100, 1))
        cells += [_percent(number(found, "mean"), 1, 2)] if scored else []
        cells += [_perplexity(number(_part(found, "perplexity"), name)) for name in texts]
        cells += [Cell("; ".join(_published(found)) or "–")] if published else []
        groups.setdefault(number(row, "sparsity") or 0.0, []).append(cells)
    caption = f"{record.model}: {text(record.config, 'table')}, token policy `{policy}`. Record `{record.path}`."
    titles = {level: level_title(level) if level else "dense, or a level of its own" for level in groups}
    return Table(caption, columns, [Rows(titles[level], groups[level]) for level in sorted(groups)])


def _part(values: Values, name: str) -> Values:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _published(found: Values) -> list[str]:
    figures = found.get("published")
    said = []
    for each in figures if isinstance(figures, list) else []:
        if isinstance(each, dict) and (mean := number(each, "mean")) is not None:
            stated = ", level not stated" if number(each, "sparsity") is None else ""
            said.append(f"{mean:.2f} ({text(each, 'model') or 'model not stated'}{stated})")
    return said


def _reasons(found: Values) -> list[str]:
    reasons = found.get("refused")
    return [str(each) for each in reasons] if isinstance(reasons, list) else []


def _percent(value: float | None, scale: float, digits: int) -> Cell:
    return EMPTY if value is None else Cell(f"{scale * value:.{digits}f}", sort=value)


def _perplexity(value: float | None) -> Cell:
    return EMPTY if value is None else Cell(figure(value), sort=value)
