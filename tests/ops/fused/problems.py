"""Groups, caches and tolerances that the tests of the fused ops share."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import torch

from rsparse.ops.fused import Attention, Cache, Group, Norm, Section


def random(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def group(columns, outs, masks=None, rank=0, dtype=torch.float32, *, dense=False, scaled=True, bias=True):
    """Sections of `outs` columns with the masks of `masks`; thresholds keep about half of N(0, 1)."""
    masks = masks or (0,) * len(outs)
    normal, edges = random(1), [0, *torch.tensor(outs).cumsum(0).tolist()]
    sections = tuple(Section(edges[i], edges[i + 1], mask) for i, mask in enumerate(masks))
    out, kinds, padded = edges[-1], max(masks) + 1, -(-rank // 8) * 8
    threshold = torch.tensor([0.5, 0.7, 0.9])[:kinds].clone()
    return Group(
        weight=(normal(columns, out) / columns**0.5).to(dtype),
        bias=normal(out) if bias else None,
        channel_scale=normal(kinds, columns).abs() + 0.3 if scaled and not dense else None,
        threshold=torch.full_like(threshold, -float("inf")) if dense else threshold,
        V=(normal(columns, len(outs) * padded) / columns**0.5).to(dtype) if rank else None,
        U=normal(padded, out).to(dtype) if rank else None,
        sections=sections,
        dense=dense,
    )


def norm(columns, dtype=torch.float32, *, plus_one=False):
    return Norm((random(2)(columns) * 0.2 + 1).to(dtype), 1e-6, plus_one)


def attention(rows, heads, kv_heads, d, length, slot, dtype=torch.float32, *, padded=False, **options):
    """(qkv, cache, cos_sin, Attention); slots from `slot` on hold NaN, as memory that nobody wrote may."""
    normal = random(3)
    k, v = (torch.full((rows, kv_heads, length, d), float("nan")) for _ in range(2))
    k[:, :, :slot], v[:, :, :slot] = normal(rows, kv_heads, slot, d), normal(rows, kv_heads, slot, d)
    first = torch.arange(rows, dtype=torch.int32) * (slot // (2 * rows)) if padded else torch.zeros(rows, dtype=torch.int32)
    cache = Cache(k.to(dtype), v.to(dtype), torch.tensor([slot], dtype=torch.int32), first, (slot - first).int())
    angle = torch.arange(length)[:, None] * 0.7 ** torch.arange(d // 2)
    qkv = normal(rows, (heads + 2 * kv_heads) * d).to(dtype)
    return qkv, cache, torch.cat([angle.cos(), angle.sin()], 1).to(dtype), Attention(d**-0.5, **options)


def copied(cache):
    return Cache(cache.k.clone(), cache.v.clone(), cache.slot, cache.first, cache.position)


def on(device, made):
    """A group, norm, cache or attention with its tensors on `device`."""
    values = {field.name: getattr(made, field.name) for field in fields(made)}
    moved = {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}
    inner = {name: on(device, value) for name, value in values.items() if is_dataclass(value)}
    return replace(made, **moved, **inner)
