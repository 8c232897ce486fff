"""From a folder of records to one page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsparse.atomic import check_writable, write_text
from rsparse.errors import RSparseError
from rsparse.report import sections
from rsparse.report.parts import Bullets, Cell, Column, Heading, Paragraph, Part, Rows, Section, Table
from rsparse.report.reading import LeftOut, Record, read, text

HERE = Path(__file__).parent
NAMED = 40  # files named one by one for each folder and reason


def write_report(folder: Path, out: Path, *, title: str = "Activation sparsity, measured") -> tuple[int, int]:
    """Write `out`, one page that needs nothing else; returns (records shown, files left out).

    The same files give the same bytes. Raises RSparseError where `folder` holds no record and where `out` cannot be written.
    """
    if out.is_dir():
        raise RSparseError(f"{out} is a folder; name a file for the page")
    check_writable(out)
    records, left = read(folder)
    page, lost = render(records, left, title)
    write_text(out, page)
    return len({record.path for record in records}) - lost, len(left) + lost


def render(records: Sequence[Record], left: Sequence[LeftOut], title: str) -> tuple[str, int]:
    """(the page, how many records no section shows)."""
    found, without = sections.build(records)
    used = frozenset().union(*(section.used for section in found))
    lost = sorted({record.path for record in records} - used)
    left = [*left, *(LeftOut(path, "a record that fits no section: what they show is not in it") for path in lost)]
    found.append(_missing(left, without))
    return _page(_unique(found), _summary(records), title), len(lost)


def _missing(left: Sequence[LeftOut], without: Sequence[str]) -> Section:
    """What is not on the page, and why."""
    parts: list[Part] = []
    parts.append(Paragraph("A – in a table is a cell that was not measured, or whose figure would be of other texts or tasks."))
    if without:
        parts.append(Bullets([f"{title}: no record here has anything for this section." for title in without]))
    if left:
        groups = Counter((_folder(each.path), each.why) for each in left)
        rows = []
        for (folder, why), count in sorted(groups.items()):
            files = [Path(each.path).name for each in left if (_folder(each.path), each.why) == (folder, why)]
            more = f" and {count - NAMED} more" if count > NAMED else ""
            rows.append([Cell(folder), Cell(str(count), sort=count), Cell(why), Cell(", ".join(files[:NAMED]) + more)])
        columns = [
            Column("folder", numeric=False),
            Column("files"),
            Column("why", numeric=False),
            Column("names", numeric=False),
        ]
        parts.append(Table("Files that are not shown", columns, [Rows("", rows)]))
    else:
        parts.append(Paragraph("Every .json file of the folder is on this page."))
    return Section("What is missing", parts)


def _unique(found: Sequence[Section]) -> list[Section]:
    """Anchors made unlike each other: names that differ in a dot alone have one slug."""
    seen = Counter(section.anchor for section in found)
    sections_ = []
    for section in found:
        parts: list[Part] = []
        for part in section.parts:
            if isinstance(part, Heading):
                seen[part.anchor] += 1
                part = replace(part, anchor=part.anchor if seen[part.anchor] == 1 else f"{part.anchor}-{seen[part.anchor]}")
            parts.append(part)
        sections_.append(replace(section, parts=parts))
    return sections_


def _folder(path: str) -> str:
    return path.rpartition("/")[0] or "."


def _summary(records: Sequence[Record]) -> str:
    days = sorted(day for r in records if (day := text(r.run, "date")[:10]))
    models = sorted({r.model for r in records})
    when = f", measured {f'on {days[0]}' if days[0] == days[-1] else f'from {days[0]} to {days[-1]}'}" if days else ""
    count = len({r.path for r in records})
    return f"{count} result record{'s' * (count != 1)} of {', '.join(models)}{when}."


def _page(found: Sequence[Section], summary: str, title: str) -> str:
    import jinja2
    from markupsafe import Markup, escape

    def prose(words: str) -> Markup:
        """Escaped first; then `code` and **strong**."""
        marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(words)))
        return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    environment.filters["plain"] = lambda words: words.replace("`", "")
    files: dict[str, Any] = {name: Markup((HERE / name).read_text(encoding="utf-8")) for name in ("style.css", "sort.js")}
    return environment.get_template("page.html").render(
        title=title, summary=summary, sections=found, style=files["style.css"], script=files["sort.js"]
    )
