"""Progress: a bar for people at a terminal, a line now and then for logs."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 30.0


def progress(total: int, label: str, unit: str = "it") -> Any:
    """Counts to `total` by `update(n)` inside a `with` block, on stderr.

    At a terminal, a tqdm bar with rate and time left, which stays as one line. Elsewhere a plain line every
    LINE_SECONDS at most, and none for what takes less: the log of an unattended run shows that it lives.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, desc=f"{label:<10}", unit=unit, dynamic_ncols=True, file=sys.stderr)
    return _Lines(total, label, unit)


class _Lines:
    def __init__(self, total: int, label: str, unit: str) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = 0
        self.start = self.printed = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *error: object) -> None:
        """A last line would repeat what the program says next."""

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.printed < LINE_SECONDS:
            return
        self.printed = now
        rate = self.done / (now - self.start)
        left = tqdm.format_interval((self.total - self.done) / rate) if rate > 0 else "?"
        sys.stderr.write(f"{self.label}: {self.done}/{self.total} {self.unit}s, {rate:.3g} {self.unit}s/s, {left} left\n")
        sys.stderr.flush()
