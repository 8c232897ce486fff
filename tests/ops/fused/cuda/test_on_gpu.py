"""stream.cu where it is meant to run: what a CPU cannot show is blocks that run at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from rsparse.ops.fused.cuda.ops import CudaOps, available
from rsparse.ops.fused.reference import ReferenceOps
from tests.ops.fused import problems
from tests.support.tolerance import assert_close_rms

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.skipif(not (torch.cuda.is_available() and available(DEVICE)), reason="no GPU that stream.cu runs on")
TENSORS = ("weight", "bias", "channel_scale", "threshold", "V", "U")


def problem(columns, outs, masks, rank, dtype):
    made = problems.group(columns, outs, masks, rank, dtype)
    group = replace(made, **{name: getattr(made, name).to(DEVICE) for name in TENSORS if getattr(made, name) is not None})
    norm = problems.norm(columns, dtype)
    x = problems.random(7)(1, columns).to(DEVICE, dtype)
    return group, replace(norm, weight=norm.weight.to(DEVICE)), x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [0, 24, 200])
@pytest.mark.parametrize(("columns", "outs", "masks"), [(2056, (256, 128, 128), (0, 1, 2)), (11008, (4096,), (0,))])
def test_it_computes_what_the_reference_does(columns, outs, masks, rank, dtype):
    group, norm, x = problem(columns, outs, masks, rank, dtype)
    found = CudaOps(DEVICE).norm_project(x, norm, group)
    assert_close_rms(found, ReferenceOps().norm_project(x, norm, group))


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
