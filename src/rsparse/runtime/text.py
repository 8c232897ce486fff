"""New tokens as text while they come: where a row ends, and pieces for whoever reads along."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Ends:
    """Notes where each row's new text first holds one of the strings `stop` (transformers' stopping criterion).

    transformers' own also finds strings that begin in the prompt, and reads the whole vocabulary first.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int, rows: int) -> None:
        self.tokenizer, self.stop, self.prompt_length = tokenizer, stop, prompt_length
        self._at: list[int | None] = [None] * rows
        # A token is a byte at least; a few more, since the first ones may lose their space or half a character.
        self._look_back = max((len(text.encode()) for text in stop), default=0) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        tail = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self._look_back) :]
        for row, text in enumerate(self.tokenizer.batch_decode(tail)):
            if self._at[row] is None and any(string in text for string in self.stop):
                self._at[row] = input_ids.shape[1] - self.prompt_length
        return torch.tensor([at is not None for at in self._at], device=input_ids.device)

    def at(self, otherwise: int) -> list[int]:
        """New tokens of each row up to its end, of one without an end `otherwise`."""
        return [otherwise if at is None else at for at in self._at]


class Watch:
    """Notes when the first token is there, and passes text on as it comes (transformers' streamer protocol)."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.first: float | None = None
        self._ids: list[int] = []
        self._printed = ""
        self._prompt_seen = False

    def on_logits(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.first is None:
            if scores.is_cuda:
                torch.cuda.synchronize()
            self.first = time.perf_counter()
        return scores

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        if self.on_text is None:
            return
        self._ids += value.flatten().tolist()
        text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        # A character of several bytes is not whole yet while its text ends in the replacement mark.
        if not text.endswith("\ufffd"):
            self.on_text(text[len(self._printed) :])
            self._printed = text

    def end(self) -> None:
        if self.on_text is not None and self._ids:
            text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
            self.on_text(text[len(self._printed) :])
            self._printed = text
