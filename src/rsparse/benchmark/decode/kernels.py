"""Where the time of a decode step goes, and how fast the device copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsparse.benchmark.decode.timing import DecodePath

STEPS = 24
NAMED = 16  # kernels of a record; the rest are one figure
COPY_BYTES = 1 << 31


@torch.no_grad()
def by_kernel(path: DecodePath, prompt: Tensor, new_tokens: int) -> dict[str, Any] | None:
    """Milliseconds a token by kernel, the largest first, over STEPS of `new_tokens`, or all but two; None without GPU or trace.

    `busy` is their sum, `span` the time from one token to the next while tracing.
    """
    if not prompt.is_cuda:
        return None
    from torch.profiler import ProfilerActivity, profile

    steps = min(STEPS, new_tokens - 2)
    path.begin(prompt)
    path.advance()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        start.record()
        for _ in range(steps):
            path.advance()
        end.record()
        torch.cuda.synchronize()
    times = {
        event.key: (event.self_device_time_total / 1000 / steps, event.count / steps)
        for event in trace.key_averages()
        if event.self_device_time_total > 0
    }
    if not times:
        return None
    ordered = sorted(times.items(), key=lambda item: -item[1][0])
    kernels = {name[:96]: {"ms": round(ms, 5), "launches": round(count, 2)} for name, (ms, count) in ordered[:NAMED]}
    busy = sum(ms for ms, _ in times.values())
    named = sum(each["ms"] for each in kernels.values())
    return {
        "kernels": kernels,
        "others_ms": round(max(0.0, busy - named), 5),
        "busy_ms": round(busy, 4),
        "span_ms": round(start.elapsed_time(end) / steps, 4),
    }


def copy_bandwidth(device: torch.device) -> float | None:
    """Bytes a second, read and written, of a copy far beyond the caches; None without a GPU."""
    if device.type != "cuda":
        return None
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * COPY_BYTES / sorted(times)[len(times) // 2]
