"""The paper's tables as `rsparse reproduce` has them: whether its ordering holds, and published figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rsparse.analysis.quality_table import figure
from rsparse.report.labels import level_title
from rsparse.report.parts import EMPTY, Bullets, Cell, Column, Heading, Paragraph, Part, Rows, Section, Table, slug
from rsparse.report.reading import Record, Values, number, text
from rsparse.reproduce.naming import title_of
from rsparse.reproduce.notes import SOURCE
from rsparse.reproduce.ordering import FAILED, ORDERING
from rsparse.reproduce.pages import place, repeated
from rsparse.reproduce.results import absent
from rsparse.reproduce.table import load, names

ORDER, TITLE = 55, "The paper's tables"
INTRO = (
    "In the order and under the titles of `rsparse reproduce`. Where the paper orders methods the first table says so: it has "
    "the first above the second; whether that holds here is told by the paired 95 % interval of the difference, of accuracy in "
    "points or of perplexity as a factor. Published figures are of other models, each named, and stand only beside figures of "
    "their own token policy. R-Sparse (searched) has a rho for each linear by the paper's search; rsparse, ours, one for all."
)


def build(records: Sequence[Record]) -> Section | None:
    models: dict[str, list[Record]] = {}
    for record in records:
        if text(record.config, "suite") == "reproduce" and _rows(record):
            models.setdefault(record.model, []).append(record)
    if not models:
        return None
    parts: list[Part] = [Paragraph(INTRO)]
    for model, mine in sorted(models.items()):
        ordered = sorted(mine, key=lambda r: (place(text(r.config, "table")), r.path))
        common = [line for line in repeated(map(_notes, ordered)) if line.startswith(SOURCE)]
        parts += [Heading(model, slug(TITLE, model)), *([Bullets(common)] if common else [])]
        for record in ordered:
            anchor = slug(TITLE, record.path.removesuffix(".json"))
            parts += [Heading(_title(text(record.config, "table")), anchor, 4), *_ordering(record)]
            parts += [*_means(record), *_by_task(record), *_perplexities(record)]
            own = [note for note in _notes(record) if note not in common]
            parts += [Bullets(own)] if own else []
    return Section(TITLE, parts, frozenset(record.path for mine in models.values() for record in mine))


def _rows(record: Record) -> list[dict[str, Any]]:
    """Empty where one of them is not as it should be."""
    rows = record.metrics.get("rows")
    whole = isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("policies"), dict) for row in rows)
    return list(rows) if whole and rows else []


def _title(table: str) -> str:
    """As the page of the model has it; a table that this version does not know goes by its name."""
    if table in names():
        return load(table).title
    return table[:1].upper() + table[1:].replace("_", " ")


def _notes(record: Record) -> list[str]:
    """What must be known of the figures; the ordering is a table, where there is one."""
    lines = record.metrics.get("lines")
    said = [str(line) for line in lines] if isinstance(lines, list) else []
    return [line for line in said if not (line.startswith(ORDERING) and _claims(record))]


def _policies(record: Record) -> list[str]:
    return list(dict.fromkeys(policy for row in _rows(record) for policy in row["policies"]))


def _claims(record: Record) -> dict[tuple[str, str, float], dict[str, Values]]:
    """Outcomes by policy of each pair and level that the paper orders."""
    found: dict[tuple[str, str, float], dict[str, Values]] = {}
    for policy in _policies(record):
        outcomes = _part(record.metrics, "ordering").get(policy)
        for each in outcomes if isinstance(outcomes, list) else []:
            if isinstance(each, dict) and text(each, "better") and text(each, "worse"):
                key = text(each, "better"), text(each, "worse"), number(each, "sparsity") or 0.0
                found.setdefault(key, {})[policy] = each
    return found


def _ordering(record: Record) -> list[Part]:
    claims, policies = _claims(record), _policies(record)
    if not claims:
        return []
    columns = [Column("the paper has", numeric=False), Column("asked", "%")]
    columns += [Column(policy, "token policy", numeric=False) for policy in policies]
    rows = [
        [
            Cell(f"{better} over {worse}"),
            Cell(f"{100 * level:.0f}", sort=level) if level else EMPTY,
            *(_outcome(mine.get(policy, {})) for policy in policies),
        ]
        for (better, worse, level), mine in claims.items()
    ]
    return [Table(f"The paper's ordering, {record.model}", columns, [Rows("", rows)])]


def _outcome(found: Values) -> Cell:
    return Cell(text(found, "verdict"), text(found, "detail")) if found else EMPTY


def _means(record: Record) -> list[Part]:
    """Accuracy by policy, with what is published under the same one."""
    if not any(_has(row, "mean") for row in _rows(record)):
        return []

    def columns(policy: str) -> list[Column]:
        return [Column(policy, "mean, %")]

    def cells(found: Values) -> list[Cell]:
        return [_value(found, number(found, "mean"), "{:.2f}".format)]

    return [_table(record, "Mean over the tasks, %", _rows_of(record, "mean"), columns, cells, published=True)]


def _by_task(record: Record) -> list[Part]:
    """Folded: a table a policy."""
    tables: list[Part] = []
    for policy in _policies(record):
        scored = [(row, tasks) for row in _rows(record) if (tasks := _part(_part(row["policies"], policy), "tasks"))]
        heads = list(dict.fromkeys(head for _, tasks in scored for head in tasks))
        groups: dict[float, list[list[Cell]]] = {}
        for row, tasks in scored:
            values = [number(tasks, head) for head in heads]
            cells = [EMPTY if value is None else Cell(f"{value:.1f}", sort=value) for value in values]
            groups.setdefault(number(row, "sparsity") or 0.0, []).append([Cell(_label(row)), *cells])
        if scored:
            said = f"By task, %, token policy `{policy}`"
            columns = [Column("method", numeric=False), *(Column(head, "%") for head in heads)]
            tables.append(Table(f"{said}, {record.model}.", columns, _grouped(groups), folded=said.replace("`", "")))
    return tables


def _perplexities(record: Record) -> list[Part]:
    mine = [_part(_part(row["policies"], policy), "perplexity") for row in _rows(record) for policy in row["policies"]]
    texts = list(dict.fromkeys(name for each in mine for name in each))
    if not texts:
        return []

    def columns(policy: str) -> list[Column]:
        return [Column(name, policy) for name in texts]

    def cells(found: Values) -> list[Cell]:
        return [_value(found, number(_part(found, "perplexity"), name), figure) for name in texts]

    beside = not any(_has(row, "mean") for row in _rows(record))  # else what is published is of the tasks
    return [_table(record, "Perplexity", _rows_of(record, "perplexity"), columns, cells, published=beside)]


def _table(
    record: Record,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Callable[[str], list[Column]],
    cells: Callable[[Values], list[Cell]],
    *,
    published: bool,
) -> Table:
    """Of each policy its `columns` with the `cells` of its figures, achieved sparsity and what is published."""
    policies = _policies(record)
    beside = {policy: _published_models(rows, policy) if published else [] for policy in policies}
    heads = [Column("method", numeric=False)]
    for policy in policies:
        heads += [*columns(policy), Column("achieved", "%"), *(Column(model, "published") for model in beside[policy])]
    groups: dict[float, list[list[Cell]]] = {}
    for row in rows:
        line = [Cell(_label(row))]
        for policy in policies:
            found = _part(row["policies"], policy)
            means = _published(found)
            line += [*cells(found), _achieved(found)]
            line += [Cell(f"{means[model]:.2f}", sort=means[model]) if model in means else EMPTY for model in beside[policy]]
        groups.setdefault(number(row, "sparsity") or 0.0, []).append(line)
    return Table(f"{title}, {record.model}. Record `{record.path}`.", heads, _grouped(groups))


def _label(row: Values) -> str:
    """The pages' name of a row: the method, then how it departs from the folder's protocol."""
    variant = text(row, "variant")
    return f"{title_of(text(row, 'preset'))}{f', {variant}' if variant else ''}"


def _has(row: Mapping[str, Any], name: str) -> bool:
    return any(_part(row["policies"], policy).get(name) is not None for policy in row["policies"])


def _rows_of(record: Record, name: str) -> list[dict[str, Any]]:
    """Rows that have the figure under a policy, and those that have none of any kind."""
    return [row for row in _rows(record) if _has(row, name) or not (_has(row, "mean") or _has(row, "perplexity"))]


def _grouped(groups: Mapping[float, list[list[Cell]]]) -> list[Rows]:
    titles = {level: level_title(level) if level else "dense, or a level of its own" for level in groups}
    return [Rows(titles[level], groups[level]) for level in sorted(groups)]


def _part(values: Values, name: str) -> Values:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _published(found: Values) -> dict[str, float]:
    """Published means by what heads their column."""
    figures = found.get("published")
    said = {}
    for each in figures if isinstance(figures, list) else []:
        if isinstance(each, dict) and (mean := number(each, "mean")) is not None:
            stated = ", level not stated" if number(each, "sparsity") is None else ""
            said[f"{text(each, 'model') or 'model not stated'}{stated}"] = mean
    return said


def _published_models(rows: Sequence[Mapping[str, Any]], policy: str) -> list[str]:
    return list(dict.fromkeys(head for row in rows for head in _published(_part(row["policies"], policy))))


def _value(found: Values, value: float | None, shown: Callable[[float], str]) -> Cell:
    """A figure, else in a word or two why there is none; the notes below the table have the reason."""
    if value is not None:
        return Cell(shown(value), sort=value)
    reasons = found.get("refused")
    if isinstance(reasons, list) and reasons:
        return Cell(absent(str(reasons[0])))
    return Cell(FAILED) if found.get("failed") else EMPTY


def _achieved(found: Values) -> Cell:
    value = number(found, "achieved_sparsity")
    return EMPTY if value is None else Cell(f"{100 * value:.1f}", sort=value)
