"""Time of a block's units as tables: µs and speed-up over the best dense by level, then the rate at which bytes are read."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsparse.analysis.quality_table import head_lines, row_line
from rsparse.errors import RSparseError

Record = dict[str, Any]
Row = dict[str, Any]
UNITS = ("qkv", "o", "gate_up", "down", "mlp")
DENSE = {
    "cublas": "cuBLAS",
    "cublas_alone": "cuBLAS, product alone",
    "rows": "Triton by rows",
    "channels": "Triton by channels",
}


def load_records(folder: Path) -> list[Record]:
    """The kernel records of `folder`, by model and dtype; not what `--json` wrote of several. Raises RSparseError for a file
    that is no record."""
    found = []
    for path in sorted(folder.glob("*.json")):
        if path.name == "settings.json":
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            config = record["config"]
            if config["suite"] == "kernels" and "models" not in config and measured(record):
                found.append((config["model"], config["dtype"], record))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RSparseError(f"{path} is not a result record ({error}); move it away") from error
    return [record for *_, record in sorted(found, key=lambda each: each[:2])]


def measured(record: Record, batch: int | None = None) -> list[Row]:
    """Rows that did not fail, of one batch or of all."""
    return [row for row in record["metrics"]["rows"] if "us" in row and batch in (None, row["batch"])]


def markdown(records: Sequence[Record], level: int = 2) -> str:
    """A section of headings `level` for each record and batch: time, then bytes a second."""
    sections = []
    for record in records:
        config, gpu = record["config"], record["env"]["gpu"] or record["env"]["cpu"]
        for batch in sorted({row["batch"] for row in measured(record)}):
            rows = measured(record, batch)
            rows_text = f", batch {batch}" if batch > 1 else ""
            title = f"{'#' * level} {config['model']} on {gpu}, {config['dtype']}{rows_text}"
            sections.append("\n".join([title, "", *_times(rows), "", *_rates(rows)]))
    return "\n\n".join(sections) + ("\n" if sections else "")


def protocol(records: Sequence[Record]) -> str:
    """What holds for every row of `markdown`."""
    return f"µs, in brackets the speed-up over the best dense path of the same run. {conditions(records)}"


def conditions(records: Sequence[Record]) -> str:
    """What was run, with which versions, and how fast the device copies."""
    first = records[0]
    versions = f"PyTorch {first['env']['torch']}, Triton {first['config']['triton']}"
    copies = sorted({row["copy_bytes_per_second"] for r in records for row in measured(r) if row["copy_bytes_per_second"]})
    copy = "" if not copies else f" The device copies at {_range([each / 1e12 for each in copies])} TB/s."
    commits = sorted({row["commit"] or "unknown" for record in records for row in measured(record)})
    return (
        f"Random weights; masks are {first['config']['masks']}. {versions}, median of {first['config']['repeats']}, "
        f"commit {', '.join(commits)}.{copy}"
    )


def _times(rows: Sequence[Row]) -> list[str]:
    """Dense paths by their median over the levels' runs, then what is sparse by level."""
    levels = sorted({row["sparsity"] for row in rows})
    lines = head_lines(["unit", "in → out", *DENSE.values(), "sparse", *(f"{level:.0%}" for level in levels)])
    for unit in _units(rows):
        mine = [row for row in rows if row["unit"] == unit]
        first = [unit, ", ".join(f"{a} → {b}" for a, b in mine[0]["shapes"]), *(_dense_us(mine, name) for name in DENSE)]
        by_path = [
            ["rsparse" if ranks == "none" else "rsparse, low rank", *_by_level(mine, ranks, levels, _speed)]
            for ranks in _ranks(mine)
        ]
        if any(row["masked"] for row in mine):
            by_path.append(["masked tiles", *_by_level(mine, _ranks(mine)[0], levels, _masked)])
        for place, cells in enumerate(by_path):
            lines.append(row_line([*(first if place == 0 else [""] * len(first)), *cells]))
    return lines


def _rates(rows: Sequence[Row]) -> list[str]:
    levels = sorted({row["sparsity"] for row in rows})
    lines = head_lines(["TB/s (share of the copy)", "ranks", "best dense", *(f"{level:.0%}" for level in levels)])
    for unit in _units(rows):
        mine = [row for row in rows if row["unit"] == unit]
        best = max(mine, key=lambda row: _rate(row["dense_bytes"], row["dense"][row["dense_best"]]["us"]))
        dense = _share(_rate(best["dense_bytes"], best["dense"][best["dense_best"]]["us"]), best["copy_bytes_per_second"])
        for ranks in _ranks(mine):
            cells = _by_level(mine, ranks, levels, lambda row: _share(row["bytes_per_second"], row["copy_bytes_per_second"]))
            lines.append(row_line([unit, ranks, dense, *cells]))
    return lines


def _by_level(rows: Sequence[Row], ranks: str, levels: Sequence[float], cell: Callable[[Row], str]) -> list[str]:
    found = {row["sparsity"]: row for row in rows if row["ranks"] == ranks}
    return [cell(found[level]) if level in found else "" for level in levels]


def _speed(row: Row) -> str:
    return f"{row['us']:.1f} ({row['speedup']:.2f}×)"


def _masked(row: Row) -> str:
    if row["masked"] is None:
        return ""
    us: float = row["masked"]["us"]
    return f"{us:.1f} ({row['dense'][row['dense_best']]['us'] / us:.2f}×)"


def _dense_us(rows: Sequence[Row], name: str) -> str:
    entries: list[Mapping[str, float] | None] = [
        row["cublas_alone"] if name == "cublas_alone" else row["dense"].get(name) for row in rows
    ]
    times = [entry["us"] for entry in entries if entry is not None]
    return f"{statistics.median(times):.1f}" if times else "–"


def _rate(size: float, us: float) -> float:
    return size / us * 1e6


def _share(rate: float, copy: float | None) -> str:
    return f"{rate / 1e12:.2f}" + ("" if copy is None else f" ({rate / copy:.0%})")


def _units(rows: Sequence[Row]) -> list[str]:
    found = {row["unit"] for row in rows}
    return [unit for unit in UNITS if unit in found]


def _ranks(rows: Sequence[Row]) -> list[str]:
    return sorted({row["ranks"] for row in rows}, key=("none", "recipe").index)


def _range(values: Sequence[float]) -> str:
    low, high = f"{values[0]:.2f}", f"{values[-1]:.2f}"
    return low if low == high else f"{low} to {high}"
