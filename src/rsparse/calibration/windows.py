"""Text to windows of token ids: what calibration and evaluation both feed a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rsparse.errors import RSparseError

SEPARATOR = "\n\n"


def bos_token(tokenizer: Any) -> int | None:
    """The BOS id where the tokenizer itself adds one (Llama, Gemma), else None (SmolLM2, Qwen)."""
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    return bos if bos is not None and ids and ids[0] == bos else None


def make_windows(
    documents: Iterable[str], tokenizer: Any, seq_len: int, *, max_windows: int | None = None, source: str = "the text"
) -> Tensor:
    """Documents as one stream, cut into [windows, seq_len] int64; the tail is dropped.

    Every window starts with BOS where the tokenizer adds one. Reads no further than `max_windows` need.
    Raises RSparseError where the text does not fill one window.
    """
    if seq_len < 2:
        raise RSparseError(f"seq_len must be at least 2 tokens, got {seq_len}")
    bos = bos_token(tokenizer)
    body = seq_len if bos is None else seq_len - 1
    ids: list[int] = []
    enough = None if max_windows is None else max_windows * body
    for number, text in enumerate(documents):
        text = text if number == 0 else SEPARATOR + text
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if enough is not None and len(ids) >= enough:
            break
    count = len(ids) // body if max_windows is None else min(max_windows, len(ids) // body)
    if count == 0:
        raise RSparseError(
            f"{source} has only {len(ids)} tokens, and one window needs {body}; give more text or ask for shorter windows"
        )
    windows = torch.tensor(ids[: count * body], dtype=torch.int64).view(count, body)
    if bos is not None:
        windows = torch.cat([torch.full((count, 1), bos), windows], dim=1)
    return windows


def spread(windows: Tensor, count: int) -> Tensor:
    """`count` windows, at least one, from all over the text: neighbours come from the same few documents."""
    count = min(max(1, count), len(windows))
    return windows[torch.linspace(0, len(windows) - 1, count).round().long().unique()]
