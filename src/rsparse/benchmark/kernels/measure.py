"""Time of several chains of calls in turn: what disturbs one while it runs disturbs its neighbours too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

LEAST = 32  # calls of a chain: between two replays of a short one the GPU idles
REPLAYS = 3  # timed at a time, after one that is not


@dataclass(frozen=True)
class Timing:
    """µs of one call: the median over the repeats, and their range over it."""

    us: float
    spread: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        middle = statistics.median(samples)
        return cls(middle, (max(samples) - min(samples)) / middle)


@dataclass(frozen=True)
class Chain:
    """Calls one behind the other, as one CUDA graph where there is a GPU; `count` of them in a replay."""

    replay: Callable[[], object]
    count: int


@torch.no_grad()
def chain(calls: Sequence[Callable[[], object]], device: torch.device) -> Chain:
    """`calls`, over and over until they are LEAST or more on a GPU; each runs once before, so that kernels compile."""
    for call in calls:
        call()

    def run(rounds: int) -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    if device.type != "cuda":
        return Chain(lambda: run(1), len(calls))
    rounds = -(-LEAST // len(calls))
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(rounds)
    return Chain(graph.replay, rounds * len(calls))


@torch.no_grad()
def alternate(chains: Mapping[str, Chain], device: torch.device, repeats: int) -> dict[str, Timing]:
    """Each chain's time, all of them once in every repeat."""
    spans: dict[str, list[Callable[[], float]]] = {name: [] for name in chains}
    for _ in range(repeats):
        for name, each in chains.items():
            spans[name].append(_timed(each.replay, device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {name: Timing.of([span() / chains[name].count for span in spans[name]]) for name in chains}


def _timed(replay: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Replay once, then REPLAYS times; what is returned gives µs of one, once the device is through. A CPU replays once."""
    if device.type != "cuda":
        start = time.perf_counter()
        replay()
        seconds = time.perf_counter() - start
        return lambda: 1e6 * seconds
    replay()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(REPLAYS):
        replay()
    last.record()
    return lambda: 1e3 * first.elapsed_time(last) / REPLAYS
