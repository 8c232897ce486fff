"""Cells that a method cannot have, below its floor for one: a finding, not a fault."""

from __future__ import annotations

from collections.abc import Sequence

from rsparse.report import labels
from rsparse.report.parts import Cell, Column, Paragraph, Rows, Section, Table
from rsparse.report.reading import Record, text

ORDER, TITLE = 58, "Cells without a figure"
INTRO = "Here a method refused what was asked of it on this model or under this token policy; no figure stands in for it."


def build(records: Sequence[Record]) -> Section | None:
    mine = [record for record in records if text(record.metrics, "refused")]
    if not mine:
        return None
    columns = [Column("method", numeric=False), Column("asked", "%")]
    columns += [Column(name, numeric=False) for name in ("token policy", "on", "why")]
    groups: dict[str, list[list[Cell]]] = {}
    for record in sorted(mine, key=lambda r: (r.model, labels.method(r), labels.level(r), r.path)):
        asked = labels.level(record)
        cells = [Cell(labels.method(record)), Cell(f"{100 * asked:.0f}", sort=asked), Cell(text(record.config, "token_policy"))]
        groups.setdefault(record.model, []).append(
            [*cells, Cell(text(record.config, "data") or "tasks"), Cell(text(record.metrics, "refused"))]
        )
    table = Table("Refused cells", columns, [Rows(model, rows) for model, rows in groups.items()])
    return Section(TITLE, [Paragraph(INTRO), table], frozenset(record.path for record in mine))
