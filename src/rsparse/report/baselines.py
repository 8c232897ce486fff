"""Which dense path a speed-up is over, and whether a faster one is known of the same model and machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rsparse.analysis.decode_table import CUBLAS
from rsparse.report.reading import Record, number, text

Machine = tuple[str, ...]


@dataclass(frozen=True)
class Path:
    """A dense path of the decode bench, tokens a second, and the records' folder in a sentence."""

    name: str
    rate: float
    place: str = ""


def paths(record: Record) -> list[Path]:
    """The dense paths that ran beside the record's."""
    found = record.metrics.get("dense")
    entries = found.items() if isinstance(found, dict) else ()
    rates = [(name, number(each, "tokens_per_second")) for name, each in entries if isinstance(each, dict)]
    return [Path(name, rate, record.place) for name, rate in rates if rate]


def over(record: Record, speedup: str) -> str:
    """The path that `speedup` or `speedup_cublas` is over: the fastest, of all or of those with cuBLAS. Empty without one."""
    mine = [path for path in paths(record) if speedup == "speedup" or path.name in CUBLAS]
    return max(mine, key=lambda path: path.rate).name if mine else ""


def fastest(records: Iterable[Record]) -> dict[Machine, Path]:
    """The fastest dense path of each model, machine, dtype and batch, in any of their runs."""
    found: dict[Machine, Path] = {}
    for record in records:
        for path in paths(record):
            if _machine(record) not in found or path.rate > found[_machine(record)].rate:
                found[_machine(record)] = path
    return found


def left_out(record: Record, known: Mapping[Machine, Path]) -> Path | None:
    """The fastest path where the record's run was without it, so that its speed-up is not over the best dense path."""
    best = known.get(_machine(record))
    return None if best is None or best.name in {path.name for path in paths(record)} else best


def _machine(record: Record) -> Machine:
    return record.model, record.machine, *(text(record.config, name) for name in ("weights_sha", "dtype", "batch"))
