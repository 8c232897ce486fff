"""Attention of one new token in one launch: attend.cu, with what it does not cover told apart."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from rsparse.ops.fused.cuda.compiler import FLOAT, INT, LONG, POINTER, Kernel, arch_of, compiled, load, pointer, source
from rsparse.ops.fused.cuda.stream import aligned
from rsparse.ops.fused.types import Attention, Cache
from rsparse.ops.fused.workspace import Workspace

FILES = ("primitives.cuh", "norm.cuh", "vectors.cuh", "merge.cuh", "turn.cuh", "attend.cu")  # each may use those before it
VECTOR = 8  # numbers of 16 bits that a thread reads at once
MOST_NUMBERS = 1024  # of a kv head's q heads together, and
MOST_GROUP = 8  # how many those may be: a thread holds 8 columns of each
# Of a group's numbers where it has more than 4 heads: on an H100 at 768 slots 7 heads of 128 take 8.6 µs, by Triton's products
# of tiles 6.9; 7 heads of 64 take 5.7 µs against 7.8, 4 heads of 256 6.8 against 15.2.
MOST_OF_MANY = 640
MOST_SPLITS = 8  # blocks of a cluster that every Hopper GPU can start
EVERY = 1 << 30  # slots of a window that there is not
TYPES = (*(POINTER,) * 12, LONG, LONG, INT, *(FLOAT,) * 4)


@dataclass(frozen=True)
class Form:
    """`splits` blocks of `warps` share a kv head's slots, a thread with `loads` of keys and as many of values in flight.

    cluster: they bring their parts together in shared memory, else through L2.
    """

    warps: int
    loads: int
    splits: int
    cluster: bool

    def shared(self, group: int, d: int) -> int:
        """Bytes of shared memory that a block takes, as attend.cu lays them out."""
        part = group * (d + 4)
        parts = self.warps + (self.splits if self.cluster else 0)
        return 4 * ((group + 1) * VECTOR * lanes(d) + parts * part)


def lanes(d: int) -> int:
    """Threads that read a slot, 8 numbers each."""
    return 1 << (d // VECTOR - 1).bit_length()


def form_for(qkv: Tensor, cache: Cache, *, blocks: int, clusters: bool) -> Form:
    """The form for this shape, of about so many `blocks`; `clusters`: whether the GPU has them."""
    rows, kv_heads, length, d = cache.k.shape
    warps, loads = 8, 8 if group_of(qkv, cache) <= 4 else 4
    most = min(MOST_SPLITS, blocks // (rows * kv_heads), length * lanes(d) // (32 * warps))
    splits = 1 << (max(1, most).bit_length() - 1)
    return Form(warps, loads, splits, clusters and splits > 1)


def group_of(qkv: Tensor, cache: Cache) -> int:
    """q heads of a kv head."""
    _, kv_heads, _, d = cache.k.shape
    return qkv.shape[1] // d // kv_heads - 2


def covers(qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention) -> bool:
    """Whether the kernel can run this: few enough q heads a kv head, and loads that are aligned."""
    k, v, d = cache.k, cache.v, cache.k.shape[3]
    group = group_of(qkv, cache)
    norms = [norm for norm in (attention.q_norm, attention.k_norm) if norm is not None]
    dtypes = {qkv.dtype, k.dtype, v.dtype, cos_sin.dtype, *(norm.weight.dtype for norm in norms)}
    if len(dtypes) > 1 or qkv.dtype not in (torch.bfloat16, torch.float16):
        return False
    if d % VECTOR or lanes(d) > 32 or group > MOST_GROUP or group * d > (MOST_OF_MANY if group > 4 else MOST_NUMBERS):
        return False
    if len(norms) == 1 or len({norm.plus_one for norm in norms}) > 1:
        return False
    if k.stride() != v.stride() or k.stride(3) != 1 or any(step % VECTOR for step in k.stride()[:3]):
        return False
    if any(each.data_ptr() % 16 for each in (k, v)):
        return False
    return all(each.is_contiguous() for each in (cos_sin, *(norm.weight for norm in norms)))


def attend(qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention, workspace: Workspace, form: Form) -> Tensor:
    """Documented in `types.FusedOps`, for what `covers` says."""
    rows, kv_heads, _, d = cache.k.shape
    group = group_of(qkv, cache)
    q_norm, k_norm = attention.q_norm, attention.k_norm
    kernel = _kernel(
        qkv.device, form, d, kv_heads, group, cache.k.stride(2), 0 if q_norm is None else 2 if q_norm.plus_one else 1,
        attention.softcap is not None, qkv.dtype == torch.float16,
    )  # fmt: skip
    qkv, y = aligned(qkv), qkv.new_empty(rows, kv_heads * group * d)
    scratch = counters = None
    if form.splits > 1 and not form.cluster:
        scratch = workspace.floats("attend", rows * kv_heads * form.splits * group * (d + 4))
        counters = workspace.counters(rows * kv_heads)
    weights = (None if norm is None else norm.weight for norm in (q_norm, k_norm))
    values = (
        *map(pointer, (qkv, cache.k, cache.v, cache.slot, cache.first, cache.position, cos_sin, *weights, y, scratch,
                       counters)),
        *cache.k.stride()[:2], attention.window or EVERY, attention.scale, attention.softcap or 0.0,
        0.0 if q_norm is None else q_norm.eps, 0.0 if k_norm is None else k_norm.eps,
    )  # fmt: skip
    kernel.launch(rows * kv_heads * form.splits, values, TYPES, qkv.device)
    return y


def constants(
    form: Form, d: int, kv_heads: int, group: int, slot_step: int, norm: int, capped: bool, half: bool
) -> dict[str, int]:
    """attend.cu's macros."""
    return {
        "D": d, "KV_HEADS": kv_heads, "GROUP": group, "SLOT_STEP": slot_step, "LANES": lanes(d), "NORM": norm,
        "CAPPED": int(capped), "WARPS": form.warps, "LOADS": form.loads, "SPLITS": form.splits,
        "SHARED": form.shared(group, d), "CLUSTER": int(form.cluster), "FLOAT16": int(half),
    }  # fmt: skip


@functools.cache
def _kernel(device: torch.device, form: Form, d: int, kv_heads: int, group: int, *rest: int | bool) -> Kernel:
    macros = constants(form, d, kv_heads, group, *rest)  # type: ignore[arg-type]
    cubin = compiled(source(*FILES), macros, arch_of(device))
    return load(cubin, "attend", 32 * form.warps, macros["SHARED"], device)
