"""Programmatic dependent launch: a kernel's programs start while the one before still runs, and wait where they read from it.

It hides what a launch costs, on Hopper and later. OVERLAP is a constexpr: other GPUs and the interpreter see none of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def begin(OVERLAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """First in each kernel: what follows sees all that kernels before have written, and may overwrite what they read.

    Every program waits, so the end of one kernel implies that of all before it.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def can_overlap(device: torch.device) -> bool:
    """Whether kernels on `device` can be launched so."""
    known = hasattr(tl.extra.cuda, "gdc_wait")
    return known and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def options(overlap: bool) -> dict[str, bool]:
    """What a launch adds to its arguments."""
    return {"OVERLAP": True, "launch_pdl": True} if overlap else {"OVERLAP": False}
