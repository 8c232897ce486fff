"""Whether the kernels compute what the model's own modules do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rsparse.analysis.quality_table import figure
from rsparse.report import labels
from rsparse.report.parts import EMPTY, Cell, Column, Paragraph, Rows, Section, Table
from rsparse.report.reading import Record, Values, number, text

ORDER, TITLE = 64, "Kernels against modules"
COMPARED = {"imposed_masks": "masks of the modules", "own_masks": "masks of their own"}
INTRO = (
    "The same model twice on the same text: the reference is its own modules, which read a window at once; the kernels take "
    "the same tokens one by one, as `generate` does. With the masks of the modules imposed only rounding of sums is left: a "
    "difference whose interval does not hold 0 points to a mistake. With masks of their own rounding moves scores over their "
    "thresholds, so single tokens differ (see KL) and the mean says whether anything is wrong. Intervals are 95 %, paired over "
    "windows."
)


def build(records: Sequence[Record]) -> Section | None:
    mine = [record for record in records if text(record.config, "suite") == "parity" and _compared(record)]
    if not mine:
        return None
    columns = [Column("kernels with", numeric=False), Column("reference", "perplexity"), Column("kernels", "perplexity")]
    columns += [Column("difference", "%"), Column("KL", "nats a token"), Column("largest logit difference")]
    columns += [
        Column("asked", "%"),
        Column("rank", numeric=False),
        Column("text", numeric=False),
        Column("GPU", numeric=False),
    ]
    groups: dict[str, list[list[Cell]]] = {}
    for record in sorted(mine, key=lambda r: (r.model, r.path)):
        title = f"{record.model}, {labels.method(record)}, {text(record.config, 'dtype')}"
        groups.setdefault(title, []).extend(_row(record, name, found) for name, found in _compared(record).items())
    table = Table("Kernels beside the model's own modules", columns, [Rows(title, rows) for title, rows in groups.items()])
    return Section(TITLE, [Paragraph(INTRO), table], frozenset(record.path for record in mine))


def _compared(record: Record) -> dict[str, Mapping[str, Any]]:
    """Comparisons that have a perplexity and its ratio to the modules', by what is said of them."""
    if not number(record.metrics, "perplexity_modules"):
        return {}
    parts = {words: record.metrics.get(name) for name, words in COMPARED.items()}
    found = {
        words: part
        for words, part in parts.items()
        if isinstance(part, dict) and number(part, "perplexity") is not None and isinstance(part.get("perplexity_ratio"), dict)
    }
    dense = labels.is_dense(record)
    return {"no masks, dense" if dense else words: part for words, part in found.items()}


def _row(record: Record, words: str, found: Values) -> list[Cell]:
    reference, ours = number(record.metrics, "perplexity_modules") or 0.0, number(found, "perplexity") or 0.0
    kl, logit = number(found, "kl"), number(found, "max_logit_difference")
    asked, share = labels.level(record), number(record.config, "rank_share")
    tokens = number(record.metrics, "tokens")
    return [
        Cell(words),
        Cell(figure(reference), sort=reference),
        Cell(figure(ours), sort=ours),
        _difference(found["perplexity_ratio"]),
        EMPTY if kl is None else Cell(f"{max(0.0, kl):.4f}", sort=kl),  # rounding alone can make it negative
        EMPTY if logit is None else Cell(f"{logit:.2f}", sort=logit),
        Cell(f"{100 * asked:.0f}", sort=asked) if asked else EMPTY,
        EMPTY if share is None else Cell("0" if share == 0 else f"{share:.1%} of the bytes read"),
        Cell(text(record.config, "data") or "–", f"{tokens:,.0f} tokens" if tokens else ""),
        Cell(record.machine),
    ]


def _difference(ratio: Values) -> Cell:
    value, low, high = (number(ratio, name) for name in ("value", "low", "high"))
    if value is None:
        return EMPTY
    note = "" if low is None or high is None else f"{_percent(low)} to {_percent(high)}"
    return Cell(_percent(value), note, sort=value)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.2f}".replace("-", "−")
