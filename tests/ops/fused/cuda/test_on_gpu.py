"""stream.cu and attend.cu where they are meant to run: what a CPU cannot show is blocks that run at once."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from rsparse.ops.fused.cuda import attend, compiler
from rsparse.ops.fused.cuda.ops import CudaOps
from rsparse.ops.fused.cuda.stream import covers
from rsparse.ops.fused.reference import ReferenceOps, act_mul, rms_norm
from rsparse.ops.fused.types import Group, Section
from tests.ops.fused import problems
from tests.ops.fused.cuda.one_hot import assert_masks, at_scores, one_hot
from tests.support.tolerance import assert_close_rms

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or compiler.refusal(DEVICE) is not None, reason="no GPU that they run on"
)


def problem(columns, outs, masks, rank, dtype, *, plus_one=False, **options):
    group = problems.on(DEVICE, problems.group(columns, outs, masks, rank, dtype, **options))
    norm = problems.on(DEVICE, problems.norm(columns, dtype, plus_one=plus_one))
    return group, norm, problems.random(7)(1, columns).to(DEVICE, dtype)


def everything(columns, dtype):
    """A group that shows its input: one-hot, it keeps every channel."""
    weight, threshold = torch.eye(columns, device=DEVICE, dtype=dtype), torch.full((1,), float("-inf"), device=DEVICE)
    return Group(weight, None, None, threshold, None, None, (Section(0, columns, 0),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [0, 24, 200])
@pytest.mark.parametrize(("columns", "outs", "masks"), [(2056, (256, 128, 128), (0, 1, 2)), (11008, (4096,), (0,))])
def test_it_computes_what_the_reference_does(columns, outs, masks, rank, dtype):
    group, norm, x = problem(columns, outs, masks, rank, dtype)
    found = CudaOps(DEVICE).norm_project(x, norm, group)
    assert_close_rms(found, ReferenceOps().norm_project(x, norm, group), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rank", "masks"), [(0, (0, 0)), (0, (0, 1)), (24, (0, 0)), (200, (0, 1))])
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_gate_and_up_with_their_activation(act, rank, masks, dtype):
    group, norm, x = problem(2056, (1040, 1040), masks, rank, dtype)
    ops, down = CudaOps(DEVICE), everything(1040, dtype)
    found = ops.mlp(x, norm, group, act, down)
    assert_close_rms(found, ReferenceOps().mlp(x, norm, group, act, down), dtype)
    torch.testing.assert_close(found, act_mul(ops.norm_project(x, norm, group), act), rtol=2**-6, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["plain", "norm", "plus_one"])
@pytest.mark.parametrize(("columns", "rank"), [(576, 576), (4112, 0)])
def test_masks_bit_for_bit(columns, rank, kind, scaled, dtype):
    outs = (columns, columns)
    group, norm, x = problem(columns, outs, (0, 1), rank, dtype, plus_one=kind == "plus_one", scaled=scaled, bias=False)
    ops = CudaOps(DEVICE)

    def run(group):
        assert covers(group, ops.stream_tiles(group))
        return ops.project(x, group) if kind == "plain" else ops.norm_project(x, norm, group)

    assert_masks(run, group, x if kind == "plain" else rms_norm(x, norm))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masks", [(0, 0), (0, 1), (1, 0)])
def test_a_pairs_masks(masks, dtype):
    """Those of the two apart, of which each number is the activation, but for a last bit of exp."""
    group, norm, x = problem(576, (576, 576), masks, 576, dtype)
    group, ops = at_scores(one_hot(group), rms_norm(x, norm)), CudaOps(DEVICE)
    assert covers(group, ops.stream_tiles(group, paired=True), paired=True)
    found = ops.mlp(x, norm, group, "silu", everything(576, dtype))
    expected = act_mul(ops.norm_project(x, norm, group), "silu")
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-7)
    assert (found != expected).float().mean() < 0.01


def test_a_replayed_graph_gives_the_same_bits_and_leaves_the_counters():
    group, norm, x = problem(4096, (4096, 1024, 1024), (0, 1, 2), 56, torch.bfloat16)
    ops = CudaOps(DEVICE)
    first = ops.norm_project(x, norm, group).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.norm_project(x, norm, group)
    for _ in range(1000):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, first)
    assert not ops.workspace.counters(2).any()


def test_two_streams_at_once():
    """Each with its own ops, whose scratch memory and counters they are."""
    group, norm, x = problem(4096, (4096,), (0,), 56, torch.bfloat16)
    wanted = CudaOps(DEVICE).norm_project(x, norm, group)
    streams, every = [torch.cuda.Stream() for _ in range(2)], [CudaOps(DEVICE) for _ in range(2)]
    torch.cuda.synchronize()
    found = [[], []]
    for _ in range(100):
        for stream, ops, kept in zip(streams, every, found, strict=True):
            with torch.cuda.stream(stream):
                kept.append(ops.norm_project(x, norm, group))
    torch.cuda.synchronize()
    assert all(torch.equal(each, wanted) for kept in found for each in kept)


ATTENTION = {
    "blocks of a head share": {"rows": 1, "heads": 32, "kv_heads": 32, "d": 128, "slot": 700},
    "7 q heads of a kv head": {"rows": 2, "heads": 14, "kv_heads": 2, "d": 64, "slot": 1000, "padded": True},
    "a window and a softcap": {"rows": 1, "heads": 4, "kv_heads": 1, "d": 256, "slot": 900, "window": 512, "softcap": 20.0},
    "no block shares": {"rows": 5, "heads": 32, "kv_heads": 32, "d": 64, "slot": 1023},
    "few slots": {"rows": 1, "heads": 8, "kv_heads": 2, "d": 72, "slot": 3},
}


def attention_problem(dtype, normed=True, **shape):
    norm = problems.norm(shape["d"], dtype)
    norms = {"q_norm": norm, "k_norm": norm} if normed else {}
    qkv, cache, cos_sin, attention = problems.attention(**shape, length=1024, dtype=dtype, **norms)
    return qkv.to(DEVICE), problems.on(DEVICE, cache), cos_sin.to(DEVICE), problems.on(DEVICE, attention)


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, dtype, clusters):
    ops = CudaOps(DEVICE)
    if clusters and not ops.clusters:
        pytest.skip("no clusters")
    ops.clusters = clusters
    qkv, cache, cos_sin, attention = attention_problem(dtype, **ATTENTION[name])
    assert attend.covers(qkv, cache, cos_sin, attention)
    expected = problems.copied(cache)
    wanted = ReferenceOps().attend(qkv, expected, cos_sin, attention)
    found = ops.attend(qkv, cache, cos_sin, attention)
    assert_close_rms(found, wanted, dtype)
    assert torch.equal(cache.v.nan_to_num(), expected.v.nan_to_num())
    assert_close_rms(cache.k.nan_to_num(), expected.k.nan_to_num(), dtype)
    assert torch.equal(cache.k.isnan(), expected.k.isnan())
    assert all(torch.equal(ops.attend(qkv, cache, cos_sin, attention), found) for _ in range(100))
    assert not ops.workspace.counters(1).any()


def test_a_replayed_graph_goes_on_by_a_slot():
    ops, shape = CudaOps(DEVICE), {"rows": 1, "heads": 32, "kv_heads": 8, "d": 128, "slot": 500}
    qkv, cache, cos_sin, attention = attention_problem(torch.bfloat16, normed=False, **shape)
    expected = problems.copied(cache)
    ops.attend(qkv, problems.copied(cache), cos_sin, attention)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.attend(qkv, cache, cos_sin, attention)
    for _ in range(20):
        graph.replay()
        assert_close_rms(found, ReferenceOps().attend(qkv, expected, cos_sin, attention), torch.bfloat16)
        cache.slot.add_(1)
        cache.position.add_(1)
        qkv.mul_(-1)
