"""Perplexity and KL of every method, at the sparsity that it reached."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rsparse.analysis.quality_table import figure
from rsparse.report.labels import level_title
from rsparse.report.paired import ratio
from rsparse.report.parts import EMPTY, Cell, Column, Paragraph, Part, Rows, Section, Table, headings
from rsparse.report.reading import Record, number
from rsparse.report.text_tables import Row, Text, TextTable, text_tables, ties_with

ORDER, TITLE = 40, "Perplexity"
INTRO = (
    "Perplexity on each text, lower is better; below it the multiple of the dense model's on the same tokens, with its 95 % "
    "interval paired over windows where the dense model's windows are there. Achieved sparsity is measured over all linears of "
    "all blocks, with everything that is read instead counted; read is the weights that one decoded token reads, output head "
    "included, KV cache not. KL is to the dense model, the mean over the table's texts. **best** is the lowest of its "
    "level in a column, **tie** one whose paired 95 % interval against the best holds 1. A table has one "
    "folder, one set of weights and one token policy; figures of two tables are not of one protocol."
)


def build(records: Sequence[Record]) -> Section | None:
    tables = text_tables(records)
    if not tables:
        return None
    parts: list[Part] = [Paragraph(INTRO)]
    for heading, table in zip(headings(TITLE, [table.protocol.model for table in tables]), tables, strict=True):
        parts += [*heading, _table(table)]
    return Section(TITLE, parts, frozenset(r.path for table in tables for row in table.rows for r in row.cells.values()))


def _table(table: TextTable) -> Table:
    texts = table.texts
    columns = [Column("method", numeric=False), Column("achieved", "%"), Column("read", "MB a token")]
    columns += [Column(text.title, f"{text.tokens:,} tokens") for text in texts]
    columns.append(Column("KL", "nats a token"))
    groups = [Rows("dense", [_row(table, row, texts, {}, {}) for row in table.rows if row.dense])]
    for asked in table.levels():
        rows = table.at(asked)
        best = {text: _best(rows, text) for text in texts}
        least = min((kl for row in rows if (kl := _kl(row, texts)) is not None), default=None)
        marks = {text: row for text, row in best.items() if row is not None and len(rows) > 1}
        kl_best = {"kl": least} if least is not None and len(rows) > 1 else {}
        groups.append(Rows(level_title(asked, dense=False), [_row(table, row, texts, marks, kl_best) for row in rows]))
    caption = f"{table.protocol.model}: {table.protocol.words}. Records of {table.protocol.place}."
    return Table(caption, columns, [group for group in groups if group.rows])


def _row(table: TextTable, row: Row, texts: Sequence[Text], best: dict[Text, Row], kl_best: dict[str, float]) -> list[Cell]:
    cells = [Cell(row.method, note=row.note), _achieved(row), _read(row)]
    for text in texts:
        record = row.cells.get(text)
        if record is None:
            cells.append(EMPTY)
            continue
        value = number(record.metrics, "perplexity") or 0.0
        mark = ""
        if text in best:
            mark = "best" if best[text] is row else "tie" if ties_with(best[text], row, text) else ""
        cells.append(Cell(figure(value), _over_dense(table, row, text), mark, value))
    kl = _kl(row, texts)
    cells.append(EMPTY if kl is None else Cell(f"{kl:.3f}", mark="best" if kl_best.get("kl") == kl else "", sort=kl))
    return cells


def _over_dense(table: TextTable, row: Row, text: Text) -> str:
    times = table.over_dense(row, text)
    if times is None or row.dense:
        return ""
    dense = table.dense(text)
    found = None if dense is None else ratio(row.cells[text], dense)
    if found is None or times > 100:
        return f"×{times:.3g}" if times < 1000 else f"×{figure(times, 0)}"
    return f"×{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _best(rows: Sequence[Row], text: Text) -> Row | None:
    measured = [row for row in rows if text in row.cells]
    return min(measured, key=lambda row: number(row.cells[text].metrics, "perplexity") or 0.0, default=None)


def _kl(row: Row, texts: Sequence[Text]) -> float | None:
    """The mean over the texts; None where one of them is missing, for then it is a mean over other texts."""
    found = [number(row.cells[text].metrics, "kl_to_dense") for text in texts if text in row.cells]
    if len(found) < len(texts) or None in found:
        return None
    return statistics.fmean(each for each in found if each is not None)


def _achieved(row: Row) -> Cell:
    found = [each for r in row.cells.values() if (each := number(r.metrics, "achieved_sparsity")) is not None]
    if not found or row.dense:
        return EMPTY
    mean = statistics.fmean(found)
    spread = f"{min(found):.1%} to {max(found):.1%}".replace("%", "") if max(found) - min(found) > 0.01 else ""
    return Cell(f"{100 * mean:.1f}", spread, sort=mean)


def _read(row: Row) -> Cell:
    pairs = [(number(r.metrics, "bytes_per_token"), number(r.metrics, "dense_bytes_per_token")) for r in row.cells.values()]
    sizes = [size for size, _ in pairs if size is not None]
    if not sizes:
        return EMPTY
    mean = statistics.fmean(sizes)
    shares = [size / dense for size, dense in pairs if size is not None and dense]
    share = "" if row.dense or not shares else f"{statistics.fmean(shares):.1%} of dense"
    return Cell(f"{mean / 1e6:.0f}", share, sort=mean)
