"""What select hands to gather: the kept channels of each segment, or all of them with zeros for the dropped."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

ALIGNED = 16  # a segment starts where 16-byte loads can


@dataclass(frozen=True)
class Lists:
    """`segments` of `length` channels cover the input; a segment's kept channels stand first in its place of the lists.

    indices: [masks, segments · length] int32, values: [masks, rows, segments · length] in the model's dtype, counts:
    [masks, segments] int32, z: [segments, rows, sections · rank] fp32, the segments' parts of Vᵀ((1−m)⊙x). Where
    `compact` is False there are neither indices nor counts, and values are m⊙x in place.
    """

    values: Tensor
    indices: Tensor | None
    counts: Tensor | None
    z: Tensor | None
    columns: int
    length: int
    segments: int
    row_stride: int
    rank: int
    compact: bool


def segmented(columns: int, split: int) -> tuple[int, int]:
    """(length, segments) of about `split` segments over `columns` channels; none is empty."""
    length = -(-columns // split)
    length += -length % ALIGNED
    return length, -(-columns // length)


def linear_segments(columns: int) -> tuple[int, int]:
    """`segmented` by a rule that knows the input alone: 128 channels or more in each of at most 16."""
    return segmented(columns, max(1, min(16, columns // 128)))
