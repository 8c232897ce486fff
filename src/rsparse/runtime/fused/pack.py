"""A model's linears as packed groups: one storage, of which the model's own parameters become views."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rsparse.ops.fused import Group, Section
from rsparse.sparse_linear import RSparseLinear

RANK_MULTIPLE = 8  # columns of V are read in vectors of 16 bytes


@torch.no_grad()
def pack_group(linears: Sequence[nn.Linear], *, by_row: bool = False) -> Group:
    """The linears of one input, side by side in an input-major matrix [in, out]; with `by_row` stored as [out, in].

    Their weights, and the factors of sparse ones, become views of the packed storage, so nothing is held twice; values stay
    bit for bit. A linear that is not sparse keeps every channel. Linears of one unit share a mask, and where the unit's
    factors are of the stacked weight, a section.
    """
    sections, masks = sections_of(linears)
    rank = _padded_rank(linears)
    sparse = [linear for linear in linears if isinstance(linear, RSparseLinear)]
    V, U = _pack_factors(linears, sections, rank) if rank else (None, None)
    return Group(
        weight=_pack_weights(linears, by_row),
        bias=_bias(linears),
        channel_scale=_scales(masks) if any(_scale_of(linear) is not None for linear in sparse) else None,
        threshold=torch.stack([_threshold_of(linear) for linear in masks]).to(torch.float32),
        V=V,
        U=U,
        sections=tuple(sections),
        dense=not sparse,
    )


@torch.no_grad()
def unpack_group(linears: Sequence[nn.Linear]) -> None:
    """Give each linear contiguous tensors of its own again."""
    for linear in linears:
        linear.weight.data = linear.weight.data.clone(memory_format=torch.contiguous_format)
        if isinstance(linear, RSparseLinear):
            for name in ("U", "V"):
                own = linear._buffers.get(name)
                if own is not None:
                    linear._buffers[name] = own.contiguous()


def sections_of(linears: Sequence[nn.Linear]) -> tuple[list[Section], list[nn.Linear]]:
    """Sections, and for each mask a linear that knows its scale and threshold."""
    sections: list[Section] = []
    masks: list[nn.Linear] = []
    places: dict[str, int] = {}
    start = 0
    for linear in linears:
        stop = start + linear.out_features
        key = linear.unit if isinstance(linear, RSparseLinear) else "dense"
        if key not in places:
            places[key] = len(masks)
            masks.append(linear)
        if sections and sections[-1].mask == places[key] and _shares_factors(linear):
            sections[-1] = Section(sections[-1].start, stop, places[key])
        else:
            sections.append(Section(start, stop, places[key]))
        start = stop
    return sections, masks


def _shares_factors(linear: nn.Linear) -> bool:
    """Whether its V is the one of the linear before it, or neither has any."""
    return not isinstance(linear, RSparseLinear) or linear.rank == 0 or "V" in linear._led


def _padded_rank(linears: Sequence[nn.Linear]) -> int:
    largest = max((linear.rank for linear in linears if isinstance(linear, RSparseLinear)), default=0)
    return -(-largest // RANK_MULTIPLE) * RANK_MULTIPLE


def _pack_weights(linears: Sequence[nn.Linear], by_row: bool) -> Tensor:
    first = linears[0].weight
    size = (sum(linear.out_features for linear in linears), first.shape[1])
    packed = first.new_empty(size).T if by_row else first.new_empty(size[::-1])
    start = 0
    for linear in linears:
        columns = packed[:, start : start + linear.out_features]
        columns.copy_(linear.weight.T)
        linear.weight.data = columns.T
        start += linear.out_features
    return packed


def _pack_factors(linears: Sequence[nn.Linear], sections: Sequence[Section], rank: int) -> tuple[Tensor, Tensor]:
    """V [in, sections · rank] and U [rank, out], zero where a section has fewer ranks."""
    first = linears[0].weight
    V = first.new_zeros(first.shape[1], len(sections) * rank)
    U = first.new_zeros(rank, sections[-1].stop)
    start = 0
    for linear in linears:
        stop = start + linear.out_features
        if isinstance(linear, RSparseLinear) and linear.rank:
            index = next(i for i, section in enumerate(sections) if section.start <= start < section.stop)
            rows, columns = U[: linear.rank, start:stop], V[:, index * rank : index * rank + linear.rank]
            assert linear.U is not None
            assert linear.V is not None
            rows.copy_(linear.U.T)
            columns.copy_(linear.V)
            linear._buffers["U"] = rows.T
            if "V" not in linear._led:
                linear._buffers["V"] = columns
        start = stop
    return V, U


def _bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    """Each linear's bias + compensation, [out] fp32; None where there is none at all."""
    vectors = [[v for v in (linear.bias, getattr(linear, "compensation", None)) if v is not None] for linear in linears]
    if not any(vectors):
        return None
    parts = [
        sum((v.float() for v in each), torch.zeros(linear.out_features, device=linear.weight.device))
        for linear, each in zip(linears, vectors, strict=True)
    ]
    return torch.cat(parts)


def _scale_of(linear: nn.Linear) -> Tensor | None:
    return linear.channel_scale if isinstance(linear, RSparseLinear) else None


def _scales(masks: Sequence[nn.Linear]) -> Tensor:
    scales = [_scale_of(linear) for linear in masks]
    ones = torch.ones(masks[0].in_features, device=masks[0].weight.device)
    return torch.stack([ones if scale is None else scale.float() for scale in scales])


def _threshold_of(linear: nn.Linear) -> Tensor:
    if isinstance(linear, RSparseLinear):
        return linear.threshold
    return torch.tensor(float("-inf"), device=linear.weight.device)
