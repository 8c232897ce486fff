"""Text for a fit: windows to train on, and others to stop by."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rsparse.calibration.text import TextSource
from rsparse.calibration.windows import make_windows
from rsparse.errors import RSparseError

TOKENS = 262_144
_HELD_OUT = 16  # one window of so many, from all over the text


def fit_windows(data: str, tokenizer: Any, seq_len: int, tokens: int = TOKENS) -> tuple[Tensor, Tensor]:
    """(windows, held-out windows) [n, seq_len] of the first `tokens` of `data`. Raises RSparseError where they are too few."""
    if tokens < 1:
        raise RSparseError(f"tokens must be at least 1, got {tokens}")
    count = max(2, tokens // max(1, seq_len))
    windows = make_windows(TextSource(data).documents(), tokenizer, seq_len, max_windows=count, source=data)
    if len(windows) < 2:
        raise RSparseError(f"{data} fills one window of {seq_len} tokens; a fit needs two, one to stop by")
    held = [index for index in range(len(windows)) if index % _HELD_OUT == 0]
    return windows[[index for index in range(len(windows)) if index % _HELD_OUT]], windows[held]
