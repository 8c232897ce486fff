"""The record of one shape in one dtype: rows that grow case by case, so that a second call goes on where one stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsparse import records
from rsparse.benchmark.kernels.cases import ALONE, DENSE, Case, Linears, ranks_at
from rsparse.benchmark.kernels.measure import Timing
from rsparse.benchmark.kernels.reading import UnitPath, dense_bytes
from rsparse.errors import RSparseError

Row = dict[str, Any]


class Rows:
    """The rows of one record file, by unit, sparsity, ranks and batch. Raises RSparseError for a file that is no record."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path, self.config = path, dict(config)
        self.rows: dict[tuple[str, float, str, int], Row] = {}
        self.tiles: dict[str, dict[str, Any]] = {}
        self._frame: dict[str, Any] | None = None
        self._start = time.perf_counter()
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                self.rows = {_key(row): row for row in found["metrics"]["rows"]}
                self.tiles = dict(found["config"]["tiles"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise RSparseError(f"{path} is not a record of kernels ({error}); move it away") from error

    def missing(self, case: Case, ranks: Sequence[str]) -> list[str]:
        """Those of `ranks` that the case has no measured row for; a failed one is missing."""
        keys = {name: (case.unit, case.sparsity, name, case.batch) for name in ranks_at(case.sparsity, ranks)}
        return [name for name, key in keys.items() if "us" not in self.rows.get(key, {})]

    def put(self, rows: Sequence[Row]) -> None:
        """Add rows, or replace them, and write the file."""
        if self._frame is None:  # once, since it asks git
            self._frame = records.Run().record({}, {}, backend="triton")
        commit = self._frame["run"]["commit"]
        self.rows |= {_key(row): {**row, "commit": commit} for row in rows}
        run = self._frame["run"] | {"seconds": round(time.perf_counter() - self._start, 2)}
        config = self.config | {"tiles": dict(sorted(self.tiles.items()))}
        ordered = [self.rows[key] for key in sorted(self.rows)]
        records.write(self.path, self._frame | {"run": run, "config": config, "metrics": {"rows": ordered}})


def _key(row: Row) -> tuple[str, float, str, int]:
    return row["unit"], row["sparsity"], row["ranks"], row["batch"]


def failed_row(case: Case, ranks: str, reason: str) -> Row:
    return _head(case, ranks) | {"failed": reason}


def measured_row(
    case: Case,
    ranks: str,
    path: UnitPath,
    timings: Mapping[str, Timing],
    itemsize: int,
    copy_bandwidth: float | None,
) -> Row:
    """What a row says; `timings` are of all the case's paths. Raises RSparseError where no dense path is among them."""
    mine, dense = timings[ranks], {name: timings[name] for name in DENSE if name in timings}
    if not dense:
        raise RSparseError("no dense path ran")
    best = min(dense, key=lambda name: dense[name].us)
    masked = timings.get("masked")
    whole, read = dense_bytes(case.linears, itemsize), path.weight_bytes(case.linears, itemsize)
    rate = read / mine.us * 1e6
    dropped = 1 - sum(map(_read_by_a_row, case.linears, path.kept, path.ranks)) / sum(each.size for each in case.linears)
    low_rank = sum(r * (v + each.out_features) for each, (_, v), r in zip(case.linears, path.reads, path.ranks, strict=True))
    return _head(case, ranks) | {
        "shapes": [[each.in_features, each.out_features] for each in case.linears],
        "rank": list(path.ranks),
        "kept": [round(kept, 2) for kept in path.kept],
        "achieved_sparsity": round(dropped, 6),
        "rank_share": round(low_rank * itemsize / read, 6),
        "us": round(mine.us, 3),
        "spread": round(mine.spread, 4),
        "bytes_read": read,
        "dense_bytes": whole,
        "bytes_per_second": round(rate),
        "copy_bytes_per_second": None if copy_bandwidth is None else round(copy_bandwidth),
        "copy_share": None if copy_bandwidth is None else round(rate / copy_bandwidth, 4),
        "dense": {name: _timing(each) for name, each in dense.items()},
        "dense_best": best,
        "speedup": round(dense[best].us / mine.us, 4),
        "speedup_cublas": round(dense["cublas"].us / mine.us, 4) if "cublas" in dense else None,
        "speedup_masked": None if masked is None else round(masked.us / mine.us, 4),
        "speedup_by_bytes": round(whole / read, 4),
        "cublas_alone": _timing(timings[ALONE]) if ALONE in timings else None,
        "masked": None if masked is None else _timing(masked),
        "relative_error": path.error,
        "ops": path.ops,
    }


def _head(case: Case, ranks: str) -> Row:
    return {"unit": case.unit, "sparsity": case.sparsity, "ranks": ranks, "batch": case.batch}


def _read_by_a_row(linears: Linears, kept: float, rank: int) -> float:
    """Weights that one row's function is made of, V counted whole as in a recipe's budget."""
    return kept * linears.out_features + rank * (linears.in_features + linears.out_features)


def _timing(timing: Timing) -> dict[str, float]:
    return {"us": round(timing.us, 3), "spread": round(timing.spread, 4)}


def headline(rows: Sequence[Row]) -> str:
    """A case's rows in one line."""
    parts = []
    for row in rows:
        if "us" not in row:
            parts.append(f"ranks {row['ranks']} failed")
            continue
        share = "" if row["copy_share"] is None else f" ({row['copy_share']:.0%} of copy)"
        rate = f"{row['bytes_per_second'] / 1e12:.2f} TB/s{share}"
        parts.append(f"ranks {row['ranks']} {row['us']:.1f} µs, {row['speedup']:.2f}× best dense, {rate}")
    if (first := next((row for row in rows if "us" in row), None)) is not None:
        others = {name: each["us"] for name, each in first["dense"].items()}
        others |= {name: first[name]["us"] for name in (ALONE, "masked") if first[name] is not None}
        parts.append(", ".join(f"{name} {us:.1f}" for name, us in others.items()))
    return "; ".join(parts)
