"""Which linears of a decode step go to stream.cu, without running any."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from rsparse.ops.fused import fused_ops
from rsparse.ops.fused.cuda import compiler
from rsparse.ops.fused.cuda import ops as module
from rsparse.ops.fused.cuda.ops import CudaOps, CudaRowOps
from rsparse.ops.fused.rows import RowOps
from rsparse.ops.fused.settings import stream_form
from rsparse.ops.fused.triton_ops import TritonOps, merged
from tests.ops.fused import problems

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def calls(monkeypatch):
    """(which kernel, its arguments) of what the ops call; each returns as many rows as it takes, of its own number."""
    seen = []

    def stream(*arguments, **options):
        seen.append(("stream", arguments, options))
        return torch.full((len(arguments[0]), 1), len(seen))

    def project(self, *arguments):
        seen.append(("triton", arguments, {}))
        return torch.full((len(arguments[0]), 1), len(seen))

    monkeypatch.setattr(module, "stream", stream)
    monkeypatch.setattr(TritonOps, "_project", project)
    return seen


def group(outs=(64, 64), masks=(0, 0), **options):
    return problems.group(64, outs, masks, dtype=torch.bfloat16, **options)


def x(rows, columns=64):
    return problems.random(9)(rows, columns).bfloat16()


def test_one_row_of_a_sparse_group_streams(calls):
    ops, made, norm, row, add = CudaOps(CPU), group(), problems.norm(64, torch.bfloat16), x(1), x(1, 128)
    ops.project(row, made, add)
    ops.norm_project(row, norm, made)
    assert [name for name, *_ in calls] == ["stream"] * 2
    for (_, arguments, options), normed, added in zip(calls, (None, norm), (add, None), strict=True):
        assert arguments[0] is row
        assert arguments[1] is made
        assert arguments[2:4] == (merged(made), ops.stream_tiles(made))
        assert arguments[4] is ops.workspace
        assert options == {"norm": normed, "add": added}


def test_one_row_of_an_mlp_is_two_launches(calls):
    """Down reads what the first made of gate and up."""
    ops, gate_up, down, norm = CudaOps(CPU), group(rank=3), group(), problems.norm(64, torch.bfloat16)
    row, add = x(1), x(1, 128)
    ops.mlp(row, norm, gate_up, "silu", down, add)
    (first, second), (pair, last) = [arguments for _, arguments, _ in calls], [options for *_, options in calls]
    assert [name for name, *_ in calls] == ["stream"] * 2
    assert first == (row, gate_up, gate_up.sections, ops.stream_tiles(gate_up, paired=True), ops.workspace)
    assert pair == {"norm": norm, "act": "silu"}
    assert second[0].item() == 1
    assert second[1] is down
    assert last == {"norm": None, "add": add}


def test_other_mlps_have_their_activation_before_down(calls):
    ops, norm = CudaOps(CPU), problems.norm(64, torch.bfloat16)
    thirds = group((64, 32), (0, 1))
    for rows, gate_up, by in ((2, group(), "triton"), (1, group(dense=True), "triton"), (1, thirds, "stream")):
        ops.mlp(x(rows), norm, gate_up, "silu", group())
        (name, first, _), (last, second, _) = calls
        assert (name, last) == (by, "triton")
        assert first[1] is gate_up
        assert second[0][:, 0].tolist() == [1] * rows
        assert second[3] == "silu"
        calls.clear()


@pytest.mark.parametrize(
    ("rows", "made"),
    [
        (2, group()),
        (1, group(dense=True)),
        (1, replace(group(), weight=group().weight.float())),
        (1, group((64, 8), (0, 1))),
    ],
    ids=["two rows", "dense", "32 bits", "sections narrower than a tile"],
)
def test_the_others_gather(calls, rows, made):
    CudaOps(CPU).project(x(rows), made)
    assert [name for name, *_ in calls] == ["triton"]
    assert calls[0][1][1] is made


@pytest.mark.parametrize(("outs", "columns"), [((64, 64), 64), ((96, 64), 32), ((48, 80), 16), ((48, 88), 16)])
def test_tiles_end_where_sections_do(monkeypatch, outs, columns):
    """As wide as they may be, down to a sector of memory."""
    asked = []
    monkeypatch.setattr(module, "tiles_for", lambda gpu, *shape: asked.append(shape) or stream_form(64, 8, 4))
    assert CudaOps(CPU).stream_tiles(group(outs, (0, 1))) == stream_form(columns, 8, 4)
    assert asked == [("stream", 64, sum(outs))]


@pytest.mark.parametrize(("out", "columns"), [(64, 64), (80, 32), (24, 16), (20, 16)])
def test_a_pairs_tiles_have_half_of_either(monkeypatch, out, columns):
    asked = []
    monkeypatch.setattr(module, "tiles_for", lambda gpu, *shape: asked.append(shape) or stream_form(64, 8, 4))
    assert CudaOps(CPU).stream_tiles(group((out, out)), paired=True) == stream_form(columns, 8, 4)
    assert asked == [("paired", 64, 2 * out)]


@pytest.mark.parametrize("why", [None, "NVRTC is missing"])
def test_the_triton_backend_streams_where_it_can(monkeypatch, why):
    monkeypatch.setattr(compiler, "refusal", lambda device: why)
    assert type(fused_ops("triton", CPU)) is (CudaOps if why is None else TritonOps)
    assert type(fused_ops("triton", CPU, dense=True)) is (CudaRowOps if why is None else RowOps)


@pytest.mark.parametrize("ops", [CudaOps, CudaRowOps])
def test_a_dense_model_has_the_same_attention(monkeypatch, ops):
    seen = []
    monkeypatch.setattr(module.attention_kernel, "attend", lambda *arguments: seen.append(arguments))
    ops(CPU).attend(*problems.attention(1, 2, 2, 64, 40, 20, torch.bfloat16))
    assert len(seen) == 1


def test_a_gpu_without_it_is_told(monkeypatch):
    monkeypatch.setattr(compiler, "refusal", lambda device: "NVRTC is missing")
    monkeypatch.setattr(TritonOps, "__init__", lambda self, device: None)
    with pytest.warns(UserWarning, match="^sparse linears take two launches each: NVRTC is missing$"):
        assert type(fused_ops("triton", CUDA)) is TritonOps


def test_wide_inputs_get_more_warps(monkeypatch):
    """A thread of 4 warps would hold 14 vectors of 28,672 channels, and spill."""
    monkeypatch.setattr(module, "tiles_for", lambda gpu, *shape: stream_form(64, 4, 8))
    wide = problems.group(28672, (64,), dtype=torch.bfloat16)
    assert CudaOps(CPU).stream_tiles(wide) == stream_form(64, 16, 8)
    assert CudaOps(CPU).stream_tiles(group()) == stream_form(64, 4, 8)
