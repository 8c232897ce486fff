"""What came out of a case, and what did not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from rsparse.benchmark.failures import reason_of
from rsparse.benchmark.kernels.measure import Timing
from rsparse.benchmark.kernels.reading import UnitPath


@dataclass
class Outcome:
    """By name of the path (of dense ones, `masked`, and ranks): its time and what it reads, or why there is none."""

    paths: dict[str, UnitPath] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def caught(failed: dict[str, str], name: str) -> Iterator[None]:
    """Note an error of the block under `name` and go on."""
    try:
        yield
    except Exception as error:
        failed[name] = reason_of(error)
