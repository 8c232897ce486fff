"""Attention of one new token over a static cache: norms, rotary, cache write and softmax in one launch.

All q heads of a kv head are one program's, and the length is split over programs (flash-decoding); the last one merges.
The length comes from the device, so that a captured graph serves every step.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from rsparse.ops.fused.arrive import arrive
from rsparse.ops.fused.inputs import normalise, tanh
from rsparse.ops.fused.launch import begin, options
from rsparse.ops.fused.types import Attention, Cache
from rsparse.ops.fused.workspace import Workspace

BLOCK = 64  # slots at a time
# Of the length. The last program adds them up one by one: on an H100 with 8 kv heads 32 take 15 µs where 8 and 16 take 8.
MOST_SPLITS = 16


@triton.jit  # type: ignore[untyped-decorator]
def _turned(  # type: ignore[no-untyped-def]
    x_ptr,  # heads of [head_dim]
    head,  # [HEADS]
    live,
    place,  # [HALF]
    weight_ptr,
    cos,
    sin,
    eps,
    half,
    PLUS_ONE: tl.constexpr,
):
    """Both halves [HEADS, HALF] of the heads, normed where there is a weight and rotated, in their dtype."""
    at = head[:, None] * (2 * half) + place[None, :]
    inside = live[:, None] & (place < half)[None, :]
    left, right = tl.load(x_ptr + at, inside, 0), tl.load(x_ptr + at + half, inside, 0)
    if weight_ptr is not None:
        a, b = left.to(tl.float32), right.to(tl.float32)
        inverse = tl.rsqrt(tl.sum(a * a + b * b, 1) / (2 * half) + eps)[:, None]
        left = normalise(left, inverse, tl.load(weight_ptr + place, place < half, 0).to(tl.float32)[None, :], PLUS_ONE)
        weight = tl.load(weight_ptr + half + place, place < half, 0).to(tl.float32)[None, :]
        right = normalise(right, inverse, weight, PLUS_ONE)
    a, b = left.to(tl.float32), right.to(tl.float32)
    return (a * cos - b * sin).to(left.dtype), (b * cos + a * sin).to(left.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _scored(scores, scale, softcap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]
    scores = scores * scale
    if CAPPED:
        scores = softcap * tanh(scores / softcap)
    return scores


@triton.jit(do_not_specialize=["window"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    qkv_ptr,  # [rows, (kv_heads · group + 2 kv_heads) · head_dim]
    k_ptr,  # [rows, kv_heads, max_len, head_dim], by strides
    v_ptr,
    slot_ptr,
    first_ptr,
    position_ptr,
    cos_sin_ptr,  # [positions, head_dim]
    q_norm_ptr,
    k_norm_ptr,
    y_ptr,  # [rows, kv_heads · group · head_dim]
    partial_ptr,  # [rows · kv_heads, SPLITS, GROUP, head_dim + 2]: weighted values, then maximum and sum
    counter_ptr,
    kv_heads,
    group,
    head_dim,
    row_stride,
    head_stride,
    slot_stride,
    scale,
    softcap,
    window,
    q_eps,
    k_eps,
    Q_PLUS_ONE: tl.constexpr,
    K_PLUS_ONE: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    DIM: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    begin(OVERLAP)
    pair, split = tl.program_id(0), tl.program_id(1)
    row, head = pair // kv_heads, pair % kv_heads
    half = head_dim // 2
    heads = kv_heads * group
    slot = tl.load(slot_ptr)
    low = tl.load(first_ptr + row)
    if WINDOWED:
        low = tl.maximum(low, slot - window + 1)
    turn = cos_sin_ptr + tl.load(position_ptr + row) * head_dim
    place, dim, g = tl.arange(0, HALF), tl.arange(0, DIM), tl.arange(0, GROUP)
    cos = tl.load(turn + place, place < half, 0).to(tl.float32)[None, :]
    sin = tl.load(turn + half + place, place < half, 0).to(tl.float32)[None, :]
    qkv = qkv_ptr + row * (heads + 2 * kv_heads) * head_dim
    q_left, q_right = _turned(qkv, head * group + g, g < group, place, q_norm_ptr, cos, sin, q_eps, half, Q_PLUS_ONE)
    k_cache = k_ptr + row.to(tl.int64) * row_stride + head * head_stride
    v_cache = v_ptr + row.to(tl.int64) * row_stride + head * head_stride

    highest = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    sums = tl.zeros([GROUP, DIM], tl.float32)
    if split == 0:  # the new token: from where it was made, not from the cache
        one = heads + head + tl.arange(0, 1)
        k_left, k_right = _turned(qkv, one, one >= 0, place, k_norm_ptr, cos, sin, k_eps, half, K_PLUS_ONE)
        to = k_cache + slot.to(tl.int64) * slot_stride + place[None, :]
        tl.store(to, k_left, (place < half)[None, :])
        tl.store(to + half, k_right, (place < half)[None, :])
        v = tl.load(qkv + (heads + kv_heads + head) * head_dim + dim, dim < head_dim, 0)
        tl.store(v_cache + slot.to(tl.int64) * slot_stride + dim, v, dim < head_dim)
        scores = tl.sum(q_left.to(tl.float32) * k_left.to(tl.float32), 1)
        scores += tl.sum(q_right.to(tl.float32) * k_right.to(tl.float32), 1)
        highest = _scored(scores, scale, softcap, CAPPED)
        total += 1
        sums += v.to(tl.float32)[None, :]

    chunk = tl.cdiv(tl.cdiv(slot - low, SPLITS), SLOTS) * SLOTS
    start = low + split * chunk
    stop = tl.minimum(start + chunk, slot)
    for begin_slot in tl.range(start, stop, SLOTS, num_stages=STAGES):
        at = begin_slot + tl.arange(0, SLOTS)
        live = at < stop
        offset = at.to(tl.int64) * slot_stride
        inside = (place < half)[:, None] & live[None, :]
        k_left = tl.load(k_cache + offset[None, :] + place[:, None], inside, 0)
        k_right = tl.load(k_cache + offset[None, :] + half + place[:, None], inside, 0)
        v = tl.load(v_cache + offset[:, None] + dim[None, :], live[:, None] & (dim < head_dim)[None, :], 0)
        scores = tl.dot(q_left, k_left, input_precision="ieee")
        scores = tl.dot(q_right, k_right, scores, input_precision="ieee")
        scores = tl.where(live[None, :], _scored(scores, scale, softcap, CAPPED), float("-inf"))
        before, highest = highest, tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp(scores - highest[:, None])
        shrink = tl.exp(before - highest)
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision="ieee")

    y_at = y_ptr + (row * heads + head * group + g)[:, None] * head_dim + dim[None, :]
    inside = (g < group)[:, None] & (dim < head_dim)[None, :]
    if SPLITS == 1:
        tl.store(y_at, (sums / total[:, None]).to(y_ptr.dtype.element_ty), inside)
    else:
        record = head_dim + 2
        mine = partial_ptr + pair * SPLITS * GROUP * record + g * record
        step = GROUP * record
        tl.store(mine[:, None] + split * step + dim[None, :], sums, inside)
        tl.store(mine + split * step + head_dim, highest, g < group)
        tl.store(mine + split * step + head_dim + 1, total, g < group)
        if arrive(counter_ptr + pair, SPLITS):
            splits = tl.arange(0, SPLITS)
            peaks = tl.load(mine[None, :] + splits[:, None] * step + head_dim, (g < group)[None, :], 0, cache_modifier=".cg")
            peak = tl.max(peaks, 0)
            total = tl.zeros([GROUP], tl.float32)
            sums = tl.zeros([GROUP, DIM], tl.float32)
            for each in tl.static_range(SPLITS):
                theirs = mine + each * step
                weight = tl.exp(tl.load(theirs + head_dim, g < group, 0, cache_modifier=".cg") - peak)
                total += weight * tl.load(theirs + head_dim + 1, g < group, 0, cache_modifier=".cg")
                sums += weight[:, None] * tl.load(theirs[:, None] + dim[None, :], inside, 0, cache_modifier=".cg")
            total = tl.where(g < group, total, 1)
            tl.store(y_at, (sums / total[:, None]).to(y_ptr.dtype.element_ty), inside)


def attend(
    qkv: Tensor,
    cache: Cache,
    cos_sin: Tensor,
    attention: Attention,
    workspace: Workspace,
    *,
    programs: int,
    overlap: bool = False,
) -> Tensor:
    """Documented in `types.FusedOps`; about `programs` programs share the work."""
    rows, kv_heads, length, d = cache.k.shape
    heads = qkv.shape[1] // d - 2 * kv_heads
    group = heads // kv_heads
    GROUP = max(16, triton.next_power_of_2(group))  # a matrix product's least
    most = triton.next_power_of_2(triton.cdiv(length, BLOCK))
    SPLITS = max(1, min(MOST_SPLITS, most, triton.next_power_of_2(triton.cdiv(programs, rows * kv_heads))))
    DIM = max(16, triton.next_power_of_2(d))
    HALF = max(16, triton.next_power_of_2(d // 2))
    y = qkv.new_empty(rows, heads * d)
    q_norm, k_norm = attention.q_norm, attention.k_norm
    _attend[(rows * kv_heads, SPLITS)](
        qkv.contiguous(), cache.k, cache.v, cache.slot, cache.first, cache.position, cos_sin,
        None if q_norm is None else q_norm.weight, None if k_norm is None else k_norm.weight, y,
        workspace.floats("attend", rows * kv_heads * SPLITS * GROUP * (d + 2)), workspace.counters(rows * kv_heads),
        kv_heads, group, d, *cache.k.stride()[:3], attention.scale, attention.softcap or 0.0, attention.window or 0,
        0.0 if q_norm is None else q_norm.eps, 0.0 if k_norm is None else k_norm.eps,
        q_norm is not None and q_norm.plus_one, k_norm is not None and k_norm.plus_one,
        attention.window is not None, attention.softcap is not None, GROUP, HALF, DIM, BLOCK, SPLITS, 2,
        num_warps=4, **options(overlap),
    )  # fmt: skip
    return y
