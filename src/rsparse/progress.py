"""Progress: a bar for people at a terminal, a line now and then for logs."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from tqdm import tqdm

FIRST_SECONDS = 5.0
LINE_SECONDS = 30.0


def progress(total: int, label: str, unit: str = "it", done: int = 0) -> Any:
    """Counts from `done` to `total` by `update(n)` inside a `with` block, on stderr.

    At a terminal, a tqdm bar with rate and time left, which stays as one line. Elsewhere plain lines: one after
    FIRST_SECONDS, whether or not anything is done by then, one every LINE_SECONDS at most, and none for what takes less
    than the first: the log of an unattended run shows that it lives.
    """
    if sys.stderr.isatty():
        return tqdm(total=total, desc=f"{label:<10}", unit=unit, dynamic_ncols=True, file=sys.stderr, initial=done)
    return _Lines(total, label, unit, done)


class _Lines:
    def __init__(self, total: int, label: str, unit: str, done: int) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.before = self.done = done
        self.start = self.printed = time.monotonic()
        # A thread's: on a slow machine the first item, and so the first `update`, can be minutes away.
        self._first = threading.Timer(FIRST_SECONDS, self._print)
        self._first.daemon = True

    def __enter__(self) -> _Lines:
        self._first.start()
        return self

    def __exit__(self, *error: object) -> None:
        """A last line would repeat what the program says next."""
        self._first.cancel()

    def update(self, count: int = 1) -> None:
        self.done += count
        if time.monotonic() - self.printed >= LINE_SECONDS:
            self._print()

    def _print(self) -> None:
        self.printed = time.monotonic()
        line = f"{self.label}: {self.done}/{self.total} {self.unit}s"
        if self.done > self.before:
            rate = (self.done - self.before) / (self.printed - self.start)
            line += f", {rate:.3g} {self.unit}s/s, {tqdm.format_interval((self.total - self.done) / rate)} left"
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
