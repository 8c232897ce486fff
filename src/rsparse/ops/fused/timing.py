"""Time of short kernels on a GPU: many calls in one CUDA graph, on weights that no cache holds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

import torch

PAST_CACHE = 160 << 20  # bytes of weights between two uses of one: three times the largest L2 so far


def copies(nbytes: int) -> int:
    """How many weights of `nbytes` to take in turn, so that each is gone from L2 when its turn comes again."""
    return max(2, -(-PAST_CACHE // max(1, nbytes)) + 1)


def microseconds(calls: Sequence[Callable[[], object]], *, replays: int = 15, least: int = 16) -> float:
    """Median µs of one of `calls`, which are captured in turn, `least` or more of them, and replayed as one graph."""
    for call in calls[:2]:  # compiles, and lets scratch memory grow
        call()
    torch.cuda.synchronize()
    rounds = max(1, -(-least // len(calls)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    for _ in range(3):
        graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    spans = [start.elapsed_time(stop) for start, stop in itertools.pairwise(marks)]
    return statistics.median(spans) * 1e3 / (rounds * len(calls))
