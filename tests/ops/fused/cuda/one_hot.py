"""stream.cu's masks made visible: by one-hot W, U and V, y is what a mask keeps, and half of what it drops."""

from __future__ import annotations

from dataclasses import replace

import torch

from rsparse.ops.fused.reference import keep
from tests.support.tolerance import assert_close_rms


def one_hot(group):
    """The group, of two sections of its input's width, with such weights; factors where it has some."""
    eye = torch.eye(group.in_features, dtype=group.weight.dtype, device=group.weight.device).repeat(1, 2)
    return replace(group, weight=eye, U=None if group.U is None else eye / 2, V=None if group.V is None else eye)


def at_scores(group, read):
    """The group with each mask's threshold at the score of a channel of `read` [1, in]: at the threshold is not above it."""
    scores = read.abs().float() * (1 if group.channel_scale is None else group.channel_scale)
    masks = len(group.threshold)
    places = [group.in_features // 3, 3 * group.in_features // 5][:masks]
    return replace(group, threshold=scores.expand(masks, -1).sort(-1).values[range(masks), places])


def assert_masks(run, group, expected):
    """Bit for bit those of the reference on the input that the kernel itself makes; run: y of a group, expected: that input."""
    group = one_hot(group)
    every = run(replace(group, threshold=torch.full_like(group.threshold, -float("inf"))))
    read = every[:, : group.in_features]
    assert_close_rms(read, expected, expected.dtype)
    assert (read != expected).float().mean() < 0.01, "roundings, but for a last bit of a sum"
    group = at_scores(group, read)
    kept = torch.cat([keep(read, group, section.mask) for section in group.sections], 1)
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(run(group), torch.where(kept, every, 0 if group.U is None else every / 2))
