"""Perplexity records, arranged as they may stand in one table: one folder, model, token policy and window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rsparse.report import labels
from rsparse.report.paired import ratio
from rsparse.report.reading import Record, number, text


@dataclass(frozen=True, order=True)
class Text:
    """A test text, and how much of it was scored: other amounts are other columns."""

    name: str
    tokens: int

    @property
    def title(self) -> str:
        return Path(self.name).stem


@dataclass
class Row:
    """A method at a level; `cells` are its records by text. `note` tells it from another of its name."""

    method: str
    asked: float
    dense: bool
    cells: dict[Text, Record] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Protocol:
    """What all cells of a table have in common."""

    model: str
    place: str
    policy: str
    seq_len: str
    sinks: str
    dtype: str
    weights: str

    @property
    def words(self) -> str:
        """For a caption."""
        parts = [f"token policy `{self.policy}`"]
        plural = "" if self.sinks == "1" else "s"
        parts += [f"{self.sinks} sink token{plural} dense"] if self.sinks and self.policy != "dense" else []
        parts += [f"windows of {self.seq_len} tokens"] if self.seq_len else []
        parts += [f"{self.dtype}, weights `{self.weights}`"] if self.dtype or self.weights else []
        return ", ".join(parts)


@dataclass(frozen=True)
class TextTable:
    protocol: Protocol
    rows: Sequence[Row]

    @property
    def texts(self) -> list[Text]:
        return sorted({text for row in self.rows for text in row.cells})

    def dense(self, text: Text) -> Record | None:
        """The dense model's record on `text`, on the same tokens."""
        return next((row.cells[text] for row in self.rows if row.dense and text in row.cells), None)

    def over_dense(self, row: Row, text: Text) -> float | None:
        """Perplexity as a multiple of the dense model's on the same tokens."""
        record = row.cells.get(text)
        if record is None:
            return None
        dense = self.dense(text)
        base = number(record.metrics if dense is None else dense.metrics, "perplexity" if dense else "dense_perplexity")
        return None if not base else (number(record.metrics, "perplexity") or 0.0) / base

    def levels(self) -> list[float]:
        """Asked sparsities of its sparse rows."""
        return sorted({row.asked for row in self.rows if not row.dense})

    def at(self, asked: float) -> list[Row]:
        return [row for row in self.rows if row.asked == asked and not row.dense]


def is_text(record: Record) -> bool:
    """Whether it has a perplexity and its token policy; a search's is of calibration text, an analysis shows its own."""
    scored = (number(record.metrics, "perplexity") or 0) > 0 and bool(text(record.config, "token_policy"))
    return scored and text(record.config, "suite") not in ("search", "analyze")


def protocol(record: Record) -> Protocol:
    config = record.config
    words = [text(config, name) for name in ("token_policy", "seq_len", "sink_tokens", "dtype", "weights_sha")]
    return Protocol(record.model, record.place, *words)


def text_tables(records: Sequence[Record]) -> list[TextTable]:
    """By model, folder and policy. Two records of one method, level and text are two rows."""
    found: dict[Protocol, list[Record]] = {}
    for record in filter(is_text, records):
        found.setdefault(protocol(record), []).append(record)
    order = sorted(found, key=lambda key: tuple(vars(key).values()))
    return [TextTable(key, _rows(found[key])) for key in order]


def _rows(records: Sequence[Record]) -> list[Row]:
    rows: dict[tuple[float, str], list[Row]] = {}
    for record in records:
        asked, name = labels.level(record), labels.method(record)
        column = Text(text(record.config, "data") or "an unnamed text", int(number(record.metrics, "tokens") or 0))
        same = rows.setdefault((asked, name), [])
        row = next((each for each in same if column not in each.cells), None)
        if row is None:
            row = Row(name, asked, labels.is_dense(record), note=record.file.stem if same else "")
            same.append(row)
        row.cells[column] = record
    return [row for key in sorted(rows) for row in rows[key]]


def ties_with(best: Row, row: Row, text: Text) -> bool:
    """Whether the 95 % interval of the two's paired ratio holds 1."""
    if row is best or text not in row.cells or text not in best.cells:
        return False
    found = ratio(row.cells[text], best.cells[text])
    return found is not None and found.low <= 1 <= found.high
