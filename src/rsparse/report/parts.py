"""What a section is made of; page.html has the markup of each. All text is escaped there; `backquotes` become code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Cell:
    """`note` stands small below `text`; `mark` says in a word what is special; `sort` orders a column of numbers."""

    text: str
    note: str = ""
    mark: str = ""
    sort: float | None = None


EMPTY = Cell("–")


@dataclass(frozen=True)
class Column:
    """A table's column; numbers stand right."""

    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Rows:
    """Rows that belong together, and are sorted and compared among themselves. The first cell of each is its head."""

    title: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    groups: Sequence[Rows]
    folded: str = ""  # a line that opens the table, where it is not open from the start


@dataclass(frozen=True)
class Heading:
    kind: ClassVar[str] = "heading"
    text: str
    anchor: str
    level: int = 3


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Bullets:
    kind: ClassVar[str] = "bullets"
    lines: Sequence[str]


@dataclass(frozen=True)
class Link:
    """Opened by a reader's click, never by the page."""

    text: str
    address: str


@dataclass(frozen=True)
class Facts:
    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str | Link]]


@dataclass(frozen=True)
class Picture:
    """`markup` is safe: made here, or base64. `alt` says what a reader who does not see it would miss."""

    kind: ClassVar[str] = "picture"
    markup: str
    alt: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Pictures:
    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]


Part = Table | Heading | Paragraph | Bullets | Facts | Picture | Pictures


@dataclass(frozen=True)
class Section:
    """`used` are paths of the records that it shows."""

    title: str
    parts: Sequence[Part]
    used: frozenset[str] = field(default_factory=frozenset)

    @property
    def anchor(self) -> str:
        return slug(self.title)


def slug(*words: str) -> str:
    """An anchor: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def headings(title: str, models: Sequence[str]) -> list[list[Heading]]:
    """For each of a section's tables, by its model: a heading where it is the model's first, else nothing."""
    before = [None, *models]
    return [[Heading(model, slug(title, model))] if model != last else [] for model, last in zip(models, before, strict=False)]
