"""Perplexity over the bytes that a token reads, a plot for each text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsparse.analysis.pareto import POOR, panel
from rsparse.report import labels
from rsparse.report.figures import plot
from rsparse.report.parts import Heading, Paragraph, Part, Picture, Pictures, Section, slug
from rsparse.report.reading import Record, number
from rsparse.report.text_tables import Text, TextTable, text_tables

ORDER, TITLE = 30, "Quality over bytes"
LEAST_LEVELS = 2  # one level is a table's matter
INTRO = (
    "Further left reads less, further down is better: perplexity (logarithmic) over the share of the dense model's bytes that "
    "a token reads. A line is a method, a mark a level; the dotted line is the dense model. Perplexities beyond three times "
    "dense are cut off at the top. The figures are in the tables below."
)


def build(records: Sequence[Record]) -> Section | None:
    parts: list[Part] = []
    used: set[str] = set()
    seen = ""
    for place, table in enumerate(text_tables(records)):
        if len(table.levels()) < LEAST_LEVELS or len({row.method for row in table.rows if not row.dense}) > 12:
            continue
        drawn = [_picture(table, text, f"p{place}-{number_}") for number_, text in enumerate(table.texts)]
        pictures = [each for each in drawn if each is not None]
        if not pictures:
            continue
        if table.protocol.model != seen:
            seen = table.protocol.model
            parts.append(Heading(seen, slug(TITLE, seen)))
        parts += [Paragraph(f"Records of {table.protocol.place}, {table.protocol.words}."), Pictures(pictures)]
        used |= {r.path for row in table.rows for r in row.cells.values()}
    return Section(TITLE, [Paragraph(INTRO), *parts], frozenset(used)) if parts else None


def _picture(table: TextTable, text: Text, name: str) -> Picture | None:
    cells = [(row.method, row.cells[text]) for row in table.rows if text in row.cells and _drawable(row.cells[text])]
    drawn = [{"config": {"preset": _preset(r, m), "sparsity": labels.level(r)}, "metrics": r.metrics} for m, r in cells]
    presets = sorted({each["config"]["preset"] for each in drawn} - {"dense"})
    if not presets:
        return None
    alt = f"{table.protocol.model}, {text.title}: perplexity over bytes read for {', '.join(presets)}"

    def draw(axis: Any) -> None:
        panel(axis, drawn, presets)
        axis.set(xlabel="bytes a token reads, share of dense", ylabel="perplexity")

    beyond = [preset for preset in presets if all(_over(r, table, text) > POOR for m, r in cells if _preset(r, m) == preset)]
    caption = f"{text.title}, {text.tokens:,} tokens" + (f"; above the scale: {', '.join(beyond)}" if beyond else "")
    height = 3.1 + 0.18 * (len(presets) // 3 + 1)
    return Picture(plot(name, (4.6, height), draw, alt=alt), alt, caption)


def _over(record: Record, table: TextTable, text: Text) -> float:
    """Perplexity as a multiple of what the top of the scale is one of."""
    dense = table.dense(text)
    return (
        0.0 if dense is None else (number(record.metrics, "perplexity") or 0.0) / (number(dense.metrics, "perplexity") or 1.0)
    )


def _preset(record: Record, method: str) -> str:
    return "dense" if labels.is_dense(record) else method


def _drawable(record: Record) -> bool:
    return bool(number(record.metrics, "bytes_per_token")) and bool(number(record.metrics, "dense_bytes_per_token"))
