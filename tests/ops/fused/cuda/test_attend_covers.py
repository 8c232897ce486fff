"""What attend.cu can run and each reason why not, its forms, and what goes to Triton instead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from rsparse.ops.fused.cuda import compiler
from rsparse.ops.fused.cuda import ops as module
from rsparse.ops.fused.cuda.attend import FILES, Form, constants, covers, form_for
from rsparse.ops.fused.cuda.compiler import compiled, source
from rsparse.ops.fused.cuda.ops import CudaOps
from rsparse.ops.fused.triton_ops import TritonOps
from tests.ops.fused import problems

CPU = torch.device("cpu")


def problem(rows=1, group=2, kv_heads=2, d=16, length=40, dtype=torch.bfloat16, **options):
    return problems.attention(rows, group * kv_heads, kv_heads, d, length, length // 2, dtype, **options)


def norms(d=16, dtype=torch.bfloat16, **options):
    made = problems.norm(d, dtype, **options)
    return {"q_norm": made, "k_norm": made}


def with_cache(change, *names, **shape):
    qkv, cache, *rest = problem(**shape)
    return qkv, replace(cache, **{name: change(getattr(cache, name)) for name in names}), *rest


def within(x, before=0, after=0):
    """The same values in wider slots."""
    wide = torch.zeros(*x.shape[:3], before + x.shape[3] + after, dtype=x.dtype)
    wide[..., before : before + x.shape[3]] = x
    return wide[..., before : before + x.shape[3]]


def with_unaligned_values():
    """By the same steps as the keys."""
    qkv, cache, *rest = problem()
    return qkv, replace(cache, k=within(cache.k, 0, 8), v=within(cache.v, 4, 4)), *rest


def every_other(x):
    return within(x.repeat_interleave(2, 3))[..., ::2]


def with_cos_sin(change):
    qkv, cache, cos_sin, attention = problem()
    return qkv, cache, change(cos_sin), attention


COVERED = {
    "16 bits": problem(),
    "the other 16 bits": problem(dtype=torch.float16),
    "several rows": problem(rows=8),
    "8 q heads of a kv head": problem(group=8, d=80),
    "256 numbers": problem(group=4, d=256),
    "a size that is no power of two": problem(d=72),
    "a window, a softcap and norms": problem(window=8, softcap=2.0, **norms()),
    "slots beside others": with_cache(lambda x: within(x, 8, 8), "k", "v"),
}
REFUSED = {
    "32 bits": problem(dtype=torch.float32),
    "a cache of another dtype": with_cache(torch.Tensor.half, "k", "v"),
    "values of another dtype": with_cache(torch.Tensor.half, "v"),
    "cos and sin of 32 bits": with_cos_sin(torch.Tensor.float),
    "a norm of 32 bits": problem(**norms(dtype=torch.float32)),
    "9 q heads of a kv head": problem(group=9),
    "7 wide q heads of a kv head": problem(group=7, d=128),
    "more than a block merges": problem(group=5, d=256),
    "heads no vectors": with_cache(lambda x: within(x, 0, 4), "k", "v", d=20),
    "heads wider than a warp reads": problem(d=264),
    "a norm of q alone": problem(q_norm=norms()["q_norm"]),
    "norms of two kinds": problem(q_norm=norms()["q_norm"], k_norm=norms(plus_one=True)["k_norm"]),
    "every other of a norm": problem(
        q_norm=norms()["q_norm"], k_norm=replace(norms()["k_norm"], weight=norms(32)["k_norm"].weight[::2])
    ),
    "keys and values apart in different ways": with_cache(lambda x: within(x, 8), "v"),
    "unaligned": with_cache(lambda x: within(x, 4, 4), "k", "v"),
    "values alone unaligned": with_unaligned_values(),
    "slots no vectors": with_cache(lambda x: within(x, 0, 4), "k", "v"),
    "every other number": with_cache(every_other, "k", "v"),
    "cos and sin by columns": with_cos_sin(lambda x: x.T.contiguous().T),
}  # fmt: skip


@pytest.mark.parametrize("name", COVERED)
def test_it_covers(name):
    assert covers(*COVERED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(name):
    assert not covers(*REFUSED[name])


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ({"kv_heads": 32, "group": 1, "d": 128, "length": 1024}, Form(8, 8, 4, True)),
        ({"kv_heads": 8, "group": 4, "d": 128, "length": 1024}, Form(8, 8, 8, True)),
        ({"kv_heads": 4, "group": 7, "d": 128, "length": 1024}, Form(8, 4, 8, True)),
        ({"kv_heads": 28, "group": 1, "d": 64, "length": 1024}, Form(8, 8, 4, True)),
        ({"rows": 3, "kv_heads": 32, "group": 1, "d": 64, "length": 1024}, Form(8, 8, 1, False)),
        ({"rows": 8, "kv_heads": 32, "group": 1, "d": 64, "length": 1024}, Form(8, 8, 1, False)),
        ({"kv_heads": 2, "group": 1, "d": 128, "length": 48}, Form(8, 8, 2, True)),
        ({"kv_heads": 2, "group": 1, "d": 128, "length": 8}, Form(8, 8, 1, False)),
    ],
)
def test_a_block_for_each_multiprocessor(shape, form):
    """As far as 8 may share, none without a slot for each of its threads when the cache is full."""
    qkv, cache, *_ = problem(**shape)
    assert form_for(qkv, cache, blocks=132, clusters=True) == form
    assert form_for(qkv, cache, blocks=132, clusters=False) == replace(form, cluster=False)


def test_what_it_covers_is_one_launch(monkeypatch):
    seen = []
    monkeypatch.setattr(module.attention_kernel, "attend", lambda *arguments: seen.append(("cuda", *arguments)))
    monkeypatch.setattr(TritonOps, "attend", lambda self, *arguments: seen.append(("triton", *arguments)))
    ops, made, other = CudaOps(CPU), problem(length=2000), problem(dtype=torch.float32)
    ops.programs = 16
    ops.attend(*made)
    ops.attend(*other)
    assert seen == [("cuda", *made, ops.workspace, Form(8, 8, 4, False)), ("triton", *other)]


@pytest.mark.parametrize(("capability", "clusters"), [((8, 9), False), ((9, 0), True), ((12, 0), True)])
def test_hopper_has_clusters(monkeypatch, capability, clusters):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    ops = CudaOps(CPU)
    assert not ops.clusters
    ops = CudaOps(CPU)
    ops.device = torch.device("cuda")
    assert ops.clusters is clusters


@pytest.mark.skipif(compiler.missing() is not None, reason=str(compiler.missing()))
@pytest.mark.parametrize(
    ("arch", "form", "norm", "capped", "half"),
    [("sm_80", Form(8, 4, 8, False), 2, True, True), ("sm_90", Form(8, 8, 4, True), 1, False, False)],
)
def test_it_compiles(tmp_path, monkeypatch, arch, form, norm, capped, half):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    macros = constants(form, 80, 2, 1, 80, norm, capped, half)
    cubin = compiled(source(*FILES), macros, arch)
    assert cubin.startswith(b"\x7fELF")
    assert b".text.attend" in cubin
