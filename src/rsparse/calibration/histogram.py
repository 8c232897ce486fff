"""Histograms over the bits of a float: exact edges, no range to choose, integer counts that add up."""

from __future__ import annotations

import torch
from torch import Tensor

# Per-channel histograms of |x|: 8 bins an octave, from 2^-18 to 2^14; smaller is bin 0, larger the last.
CHANNEL_BINS = 256
_SHIFT = 20  # leaves 8 exponent and 3 mantissa bits
_FIRST = (127 - 18) << 3


def channel_histogram(x: Tensor) -> Tensor:
    """Counts [in, CHANNEL_BINS] int64 of |x|, for x [rows, in]."""
    bins = (x.abs().float().view(torch.int32) >> _SHIFT).sub_(_FIRST).clamp_(0, CHANNEL_BINS - 1)
    bins += torch.arange(x.shape[1], device=x.device, dtype=torch.int32) * CHANNEL_BINS
    return torch.bincount(bins.flatten(), minlength=x.shape[1] * CHANNEL_BINS).view(x.shape[1], CHANNEL_BINS)


def channel_edges(device: torch.device | None = None) -> Tensor:
    """Lower edges of the bins and the last upper edge: [CHANNEL_BINS + 1] fp32; the first is 0."""
    bits = (torch.arange(CHANNEL_BINS + 1, dtype=torch.int32, device=device) + _FIRST) << _SHIFT
    edges = bits.view(torch.float32).clone()
    edges[0] = 0
    return edges


def kept_share(histogram: Tensor, c: Tensor | None, t: float) -> float:
    """Share of all channels whose |x|·c > t, from counts [in, bins]; linear inside a bin."""
    histogram = histogram.float()
    cut = torch.full((histogram.shape[0],), t, device=histogram.device)
    cut = cut if c is None else cut / c.clamp_min(1e-30)
    edges = channel_edges(histogram.device)
    bin_of = (torch.searchsorted(edges, cut, right=True) - 1).clamp(0, CHANNEL_BINS - 1)
    inside = ((edges[bin_of + 1] - cut) / (edges[bin_of + 1] - edges[bin_of])).clamp(0, 1)
    above = histogram.flip(1).cumsum(1).flip(1)  # above[:, b]: counts in bins b and up
    here = histogram.gather(1, bin_of[:, None])[:, 0]
    beyond = above.gather(1, bin_of[:, None])[:, 0] - here
    return float((beyond + here * inside).sum() / histogram.sum())


def lookup_threshold(histogram: Tensor, c: Tensor | None, share: float) -> float:
    """The t at which `kept_share` is `share`; bisection in log t."""
    low, high = -70.0, 70.0  # log2 of t: beyond every |x|·c that fp32 activations produce
    for _ in range(60):
        middle = (low + high) / 2
        if kept_share(histogram, c, 2.0**middle) > share:
            low = middle
        else:
            high = middle
    return float(2.0 ** ((low + high) / 2))


def solve_threshold(x: Tensor, c: Tensor | None, share: float, *, chunk: int = 2048) -> float:
    """The t that keeps `share` of all channels over the rows of x [rows, in]: a quantile of |x|·c.

    256 bins an octave and linear inside one, so exact to far below the ±0.3 % of sparsity that is promised.
    """
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=x.device)
    for rows in x.split(chunk):
        score = rows.abs().float()
        score = score if c is None else score * c
        counts += torch.bincount((score.view(torch.int32) >> 15).flatten(), minlength=1 << 16)
    above = counts.flip(0).cumsum(0).flip(0)
    wanted = share * x.numel()
    if wanted <= 0:
        return float(_value(int(counts.nonzero()[-1]) + 1))
    index = int((above >= wanted).nonzero()[-1])  # the highest bin from which on at least `wanted` lie
    beyond = int(above[index]) - int(counts[index])
    if c is None and x.dtype in (torch.bfloat16, torch.float16):
        # 16-bit values sit on the bins' lower edges: a bin is kept or dropped whole, whichever is nearer.
        nearer_kept = int(above[index]) - wanted < wanted - beyond
        return _value(index) * (1 - 2.0**-10) if nearer_kept else _value(index)
    part = (wanted - beyond) / int(counts[index])
    low, high = _value(index), _value(index + 1)
    return high - part * (high - low)


def quantile_threshold(x: Tensor, c: Tensor | None, share: float) -> Tensor:
    """`solve_threshold` to the nearest bin, as a 0-d tensor on x's device: ±0.2 % of sparsity."""
    score = x.abs().float()
    bits = ((score if c is None else score * c).view(torch.int32) >> 15).flatten()
    counts = _scattered(bits) if x.is_cuda else torch.bincount(bits, minlength=1 << 16)
    above = counts.flip(0).cumsum(0).flip(0)  # falls with the bin
    index = (above - share * bits.numel()).abs().argmin()  # the bin from which on there is the share, as near as it gets
    # Just below the bin's edge, where 16-bit values lie.
    return ((index.to(torch.int32) << 15) - 1).clamp_min(0).view(torch.float32)


def _scattered(bits: Tensor) -> Tensor:
    """bincount of bits [n] int32 below 2^16, without bincount's wait for the GPU to tell the largest of them."""
    ones = torch.ones((), dtype=torch.int64, device=bits.device).expand(len(bits))
    return torch.zeros(1 << 16, dtype=torch.int64, device=bits.device).scatter_add_(0, bits.long(), ones)


def _value(index: int) -> float:
    return float(torch.tensor(index << 15, dtype=torch.int32).view(torch.float32))
