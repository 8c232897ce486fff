"""Seconds of a prompt and of every token after it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

LENGTHS = (128, 256, 512, 1024, 2048)


class DecodePath(Protocol):
    """A way to decode, ready to run: what compiles or is captured has been."""

    name: str

    def begin(self, prompt: Tensor) -> None:
        """Run the prompt [batch, tokens] and choose the first new token."""
        ...

    def advance(self) -> None:
        """One more token of each row; returns while the device is still at it."""
        ...


@dataclass(frozen=True)
class Timing:
    """Seconds by repeat: of prompt and first token, and of each token after that."""

    batch: int
    prefill: Sequence[float]
    steps: Sequence[Sequence[float]]

    @property
    def decode_seconds(self) -> float:
        """Of all tokens but the first, the median over the repeats."""
        return statistics.median(sum(steps) for steps in self.steps)

    @property
    def prefill_seconds(self) -> float:
        return statistics.median(self.prefill)

    @property
    def tokens_per_second(self) -> float:
        """Of all rows together, after the first token."""
        return self.batch * len(self.steps[0]) / self.decode_seconds

    def metrics(self) -> dict[str, Any]:
        """What a record says of it; milliseconds a token are medians over the repeats."""
        by_length = {}
        for length in LENGTHS:
            if length <= len(self.steps[0]) + 1:
                seconds = statistics.median(sum(steps[: length - 1]) for steps in self.steps)
                whole = statistics.median(p + sum(s[: length - 1]) for p, s in zip(self.prefill, self.steps, strict=True))
                by_length[str(length)] = {
                    "tokens_per_second": round(self.batch * (length - 1) / seconds, 2),
                    "with_prefill": round(self.batch * length / whole, 2),
                }
        per_token = sorted(statistics.median(each) for each in zip(*self.steps, strict=True))
        total = [sum(steps) for steps in self.steps]
        return {
            "tokens_per_second": round(self.tokens_per_second, 2),
            "ms_per_token": round(1000 * self.decode_seconds / len(self.steps[0]), 4),
            "ms_per_token_p5_p95": [round(1000 * per_token[int(q * (len(per_token) - 1))], 4) for q in (0.05, 0.95)],
            "repeats_spread": round((max(total) - min(total)) / statistics.median(total), 4),
            "prefill_seconds": round(self.prefill_seconds, 5),
            "by_length": by_length,
        }


@torch.no_grad()
def measure(path: DecodePath, prompt: Tensor, new_tokens: int, repeats: int) -> Timing:
    """Decode `new_tokens` after the prompt [batch, tokens], once to warm up and then `repeats` times."""
    path.begin(prompt)
    for _ in range(min(32, new_tokens - 1)):
        path.advance()
    prefill, steps = [], []
    for _ in range(repeats):
        _synchronize(prompt)
        start = time.perf_counter()
        path.begin(prompt)
        _synchronize(prompt)
        prefill.append(time.perf_counter() - start)
        steps.append(_steps(path, new_tokens - 1, prompt.is_cuda))
    return Timing(prompt.shape[0], prefill, steps)


def _steps(path: DecodePath, count: int, cuda: bool) -> list[float]:
    if not cuda:
        marks = [time.perf_counter()]
        for _ in range(count):
            path.advance()
            marks.append(time.perf_counter())
        return [later - earlier for earlier, later in itertools.pairwise(marks)]
    # Events, so that the host never waits between two tokens.
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        path.advance()
        event.record()
    torch.cuda.synchronize()
    return [earlier.elapsed_time(later) / 1000 for earlier, later in itertools.pairwise(events)]


def _synchronize(like: Tensor) -> None:
    if like.is_cuda:
        torch.cuda.synchronize()
