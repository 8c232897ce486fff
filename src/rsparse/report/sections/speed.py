"""Speed, each figure beside the baseline of its own run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rsparse.report import labels
from rsparse.report.baselines import Machine, Path, fastest, left_out, over
from rsparse.report.parts import EMPTY, Cell, Column, Heading, Paragraph, Part, Rows, Section, Table, slug
from rsparse.report.reading import Record, number, text

ORDER, TITLE = 60, "Speed"
SUITES = {"decode": "generation", "evaluation": "evaluation"}
OTHERS = {"quality", "search", "analyze", "reproduce", "refused", "kernels", "parity"}
LEAD = (
    "tokens_per_second",
    "dense_tokens_per_second",
    "speedup",
    "speedup_cublas",
    "speedup_by_bytes",
)  # and what else is measured follows by name
SETTINGS = (
    "dtype", "backend", "batch", "prompt_tokens", "new_tokens", "repeats", "token_policy", "threads", "ranks", "rank_share",
)  # fmt: skip
UNITS = {
    "_tokens_per_second": "tokens/s", "tokens_per_second": "tokens/s", "bytes_per_second": "GB/s", "_seconds": "s",
    "ms_per_token": "ms a token", "_ms": "ms", "_us": "µs", "bytes_per_token": "MB a token", "_bytes": "MB",
}  # fmt: skip
GIGA, MEGA = ("GB/s",), ("MB a token", "MB")
QUALITY = {
    "perplexity", "dense_perplexity", "tokens", "kl_to_dense", "token_agreement", "sparse_row_share", "achieved_sparsity",
}  # fmt: skip
DIGITS = re.compile(r"(\d+)")
TITLES = {
    "tokens_per_second": "speed", "bytes_per_token": "read", "dense_bytes_per_token": "dense reads", "ms_per_token": "a step",
    "speedup_by_bytes": "bound by bytes", "speedup_of_linears": "bound of linears", "bytes_per_second": "bandwidth",
    "copy_bytes_per_second": "copy bandwidth", "speedup": "over best dense", "speedup_cublas": "over best cuBLAS",
    "dense_tokens_per_second": "best dense",
}  # fmt: skip
INTRO = (
    "Every speed-up is measured in the same run on the same machine as what it is over, whose name stands below it: over "
    "the best dense path of the run, or the best with cuBLAS. `steps` is this runtime on dense weights with the fastest "
    "kernel we have for them, `steps-cublas` the same with cuBLAS, `compile` the model's own modules under `torch.compile`. A "
    "figure above 1 is a gain. Runs without the fastest dense path that is known say so in the caption: their speed-up is over "
    "a slower one, and does not compare with the others. A bound is what the bytes alone would allow, no measurement. **best** "
    "is the highest of its level. Speeds of evaluation say how fast a model is measured, nothing of how fast it generates."
)


def build(records: Sequence[Record]) -> Section | None:
    found: dict[tuple[str, int, str, str], list[Record]] = {}
    for record in records:
        if (suite := _suite(record)) is not None:
            key = record.model, list(SUITES).index(suite), record.folder, record.machine
            found.setdefault(key, []).append(record)
    if not found:
        return None
    parts: list[Part] = [Paragraph(INTRO)]
    known = fastest(records)
    for place, key in enumerate(sorted(found)):
        model, number_, _, machine = key
        if place == 0 or sorted(found)[place - 1][0] != model:
            parts.append(Heading(model, slug(TITLE, model)))
        what = list(SUITES.values())[number_]
        random = ", random weights" if all(map(labels.is_random, found[key])) else ""
        caption = f"{model}{random}, {what}, on {machine}. Records of {found[key][0].place}. {_lacking(found[key], known)}"
        parts.append(_table(caption.strip(), found[key]))
    return Section(TITLE, parts, frozenset(record.path for group in found.values() for record in group))


def _lacking(records: Sequence[Record], known: Mapping[Machine, Path]) -> str:
    """A sentence where runs were without the fastest dense path that others of the same model and machine have."""
    lacking = {best for record in records if (best := left_out(record, known)) is not None}
    return " ".join(
        f"**Without the fastest dense path**, `{path.name}` ({path.rate:,.0f} tokens/s in {path.place}): speed-ups here are "
        "over slower ones."
        for path in sorted(lacking, key=lambda path: (path.name, path.rate, path.place))
    )


def _suite(record: Record) -> str | None:
    suite = text(record.config, "suite")
    if suite in SUITES and _columns([record]):
        return suite
    if suite in OTHERS:
        return None
    if number(record.metrics, "tokens_per_second") is not None:
        return "decode"
    return "evaluation" if number(record.metrics, "forward_tokens_per_second") is not None else None


def _flat(record: Record) -> dict[str, Any]:
    """The metrics, with the rates of each dense path, and those at each length of what was generated, among them."""
    found = dict(record.metrics)
    for part, start in (("dense", "dense "), ("by_length", "at ")):
        inner = record.metrics.get(part)
        for name, each in inner.items() if isinstance(inner, dict) else ():
            if isinstance(each, dict):
                found[f"{start}{name}_tokens_per_second"] = each.get("tokens_per_second")
    return found


def _columns(records: Sequence[Record]) -> list[str]:
    """Numbers that one of them has, the leading ones first; quality stands elsewhere."""
    names = {name for r in records for name in _flat(r) if number(_flat(r), name) is not None} - QUALITY
    rest = sorted(names - set(LEAD), key=lambda name: [int(each) if each.isdigit() else each for each in DIGITS.split(name)])
    return [name for name in LEAD if name in names] + rest


def _table(caption: str, records: Sequence[Record]) -> Table:
    names = _columns(records)
    shown = {name: [text(r.config, name) or text(r.env, name) for r in records] for name in SETTINGS}
    same = {name: values[0] for name, values in shown.items() if len(set(values)) == 1 and values[0]}
    differ = [name for name, values in shown.items() if len(set(values)) > 1]
    columns = [Column("method", numeric=False), Column("achieved", "%")]
    columns += [Column(name.replace("_", " "), numeric=False) for name in differ]
    columns += [Column(_title(name), _unit(name)) for name in names]
    groups = []
    for asked in sorted({labels.level(r) for r in records}):
        rows = [r for r in records if labels.level(r) == asked]
        groups.append(Rows(labels.level_title(asked), [_row(r, names, differ, rows) for r in rows]))
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in same.items())
    return Table(f"{caption} {settings[:1].upper()}{settings[1:]}.", columns, groups)


def _row(record: Record, names: Sequence[str], differ: Sequence[str], peers: Sequence[Record]) -> list[Cell]:
    achieved = number(record.metrics, "achieved_sparsity")
    cells = [Cell(labels.method(record)), Cell(f"{100 * achieved:.1f}", sort=achieved) if achieved else EMPTY]
    cells += [Cell(text(record.config, name) or text(record.env, name) or "–") for name in differ]
    return [*cells, *(_cell(record, name, peers) for name in names)]


def _cell(record: Record, name: str, peers: Sequence[Record]) -> Cell:
    value = number(_flat(record), name)
    if value is None:
        return EMPTY
    unit = _unit(name)
    scaled = value / 1e9 if unit in GIGA else value / 1e6 if unit in MEGA else value
    others = [each for peer in peers if (each := number(peer.metrics, name)) is not None]
    best = name in ("tokens_per_second", "speedup") and len(others) > 1 and value == max(others)
    path = over(record, name) if name in ("speedup", "speedup_cublas") else ""
    return Cell(_figure(scaled, name), path, "best" if best else "", value)


def _figure(value: float, name: str) -> str:
    if name.startswith("speedup"):
        return f"×{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _unit(name: str) -> str:
    if name.startswith("speedup"):
        return "×"
    return next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")


def _title(name: str) -> str:
    """Without what the unit says already."""
    ending: Any = next((each for each in UNITS if each.startswith("_") and name.endswith(each)), "")
    if name in TITLES:
        return TITLES[name]
    if name.startswith("speedup_"):
        return f"over {name.removeprefix('speedup_').replace('_', ' ')}"
    return name.removesuffix(ending).replace("_", " ")
