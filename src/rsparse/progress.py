"""Progress bars for people: rate, time left; silent where nobody watches."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, label: str, unit: str = "it") -> Any:
    """A tqdm bar on stderr that leaves one line when it ends; off where stderr is not a terminal."""
    return tqdm(total=total, desc=f"{label:<10}", unit=unit, dynamic_ncols=True, file=sys.stderr, disable=None)
