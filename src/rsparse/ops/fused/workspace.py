"""Scratch memory that a chain of kernels on one stream shares: each kernel ends before the next one writes."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Buffers by name that grow to the largest use. While a CUDA graph is captured they must have grown already.

    `capturing` makes one for a captured graph alone, whose memory its buffers are.
    """

    def __init__(self, device: torch.device, *, capturing: bool = False) -> None:
        self.device, self.capturing = device, capturing
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def floats(self, name: str, numel: int) -> Tensor:
        return self.take(name, numel, torch.float32)

    def counters(self, numel: int) -> Tensor:
        """Zeros, which each kernel leaves as zeros."""
        return self.take("counters", numel, torch.int32)

    def take(self, name: str, numel: int, dtype: torch.dtype) -> Tensor:
        """A flat buffer of at least `numel`; contents are of its last user, or 0 when it is new."""
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < numel:
            if not self.capturing and self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"scratch buffer {name!r} would grow in a captured graph: run the step once before")
            buffer = torch.zeros(numel, dtype=dtype, device=self.device)
            self._buffers[name, dtype] = buffer
        return buffer
