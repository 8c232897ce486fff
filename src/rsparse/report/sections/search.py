"""The course of each search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsparse.analysis.quality_table import figure
from rsparse.analysis.search_ablation import draw
from rsparse.evaluation.paired import bounded_exp
from rsparse.report.figures import plot
from rsparse.report.parts import EMPTY, Cell, Column, Heading, Paragraph, Part, Picture, Rows, Section, Table, slug
from rsparse.report.reading import Record, number, numbers, text

ORDER, TITLE = 70, "Search"
SAME = ("sparsity", "objective", "criterion", "fit", "grouping", "samples", "seq_len", "seed", "calibration", "weights")
NEEDED = ("population", "generations", "sparsity")
COST = {
    "evaluations": ("candidates", ""), "stopped_early": ("stopped early", "share"),
    "seconds_per_candidate": ("a candidate", "s"), "factors_seconds": ("factors", "s"), "search_seconds": ("in all", "s"),
}  # fmt: skip
INTRO = (
    "The best candidate so far after each generation, on the calibration windows that judge (no test text), beside sparse-only "
    "at the same bytes. Lower is better; **best** is the lowest of a column."
)


def build(records: Sequence[Record]) -> Section | None:
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in filter(_is_search, records):
        found.setdefault((record.model, record.folder, *(text(record.config, name) for name in SAME)), []).append(record)
    if not found:
        return None
    parts: list[Part] = [Paragraph(INTRO)]
    seen = ""
    for place, key in enumerate(sorted(found)):
        mine = sorted(found[key], key=lambda r: (number(r.config, "population") or 0, r.path))
        if key[0] != seen:
            seen = key[0]
            parts.append(Heading(seen, slug(TITLE, seen)))
        parts += _search(mine, f"s{place}")
    return Section(TITLE, parts, frozenset(record.path for group in found.values() for record in group))


def _is_search(record: Record) -> bool:
    whole = all(number(record.config, name) is not None for name in NEEDED) and text(record.config, "objective")
    return bool(whole and numbers(record.metrics, "history") and number(record.metrics, "sparse_only_fitness") is not None)


def _search(records: Sequence[Record], name: str) -> list[Part]:
    config = records[0].config
    objective = text(config, "objective")
    what = "perplexity" if objective == "perplexity" else "KL to dense, nats a token"
    same = ", ".join(f"{key.replace('_', ' ')} {text(config, key)}" for key in SAME if text(config, key))
    caption = f"{records[0].model}: best {what} so far. {same[:1].upper()}{same[1:]}; on {records[0].machine}. "
    caption += f"Records of {records[0].place}."
    alt = f"{records[0].model}: best {objective} so far over candidates evaluated, populations "
    alt += ", ".join(text(r.config, "population") for r in records)
    drawable = [{"config": dict(r.config), "metrics": dict(r.metrics)} for r in records]

    def course(axis: Any) -> None:
        draw(axis, drawable)

    table = _table(records, objective, caption)
    return [Picture(plot(name, (6.0, 3.8), course, alt=alt), alt, f"Best {what} so far over candidates evaluated."), table]


def _table(records: Sequence[Record], objective: str, caption: str) -> Table:
    courses = [numbers(r.metrics, "history") for r in records]
    generations = max(map(len, courses))
    cost = [name for name in COST if any(number(r.metrics, name) is not None for r in records)]
    columns = [Column("population"), Column("sparse-only")]
    columns += [Column(f"generation {number_ + 1}") for number_ in range(generations)]
    columns += [Column(*COST[name]) for name in cost]
    least = [min((c[i] for c in courses if i < len(c)), default=None) for i in range(generations)]
    rows = []
    for record, course in zip(records, courses, strict=True):
        cells = [Cell(text(record.config, "population"), sort=number(record.config, "population"))]
        cells.append(_fitness(number(record.metrics, "sparse_only_fitness") or 0.0, objective))
        for place in range(generations):
            if place >= len(course):
                cells.append(EMPTY)
                continue
            best = len(records) > 1 and course[place] == least[place]
            cells.append(_fitness(course[place], objective, "best" if best else ""))
        cells += [_cost(record, name) for name in cost]
        rows.append(cells)
    return Table(caption, columns, [Rows("", rows)])


def _fitness(value: float, objective: str, mark: str = "") -> Cell:
    shown = figure(bounded_exp(value), 3) if objective == "perplexity" else f"{value:.4f}"
    return Cell(shown, mark=mark, sort=value)


def _cost(record: Record, name: str) -> Cell:
    value = number(record.metrics, name)
    if value is None:
        return EMPTY
    return Cell(f"{value:.0f}" if value == int(value) or value >= 1000 else f"{value:.3g}", sort=value)
