"""The Triton kernels where they are meant to run, against the reference; interpreted_kernels.py has them on a CPU."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from rsparse.ops import dispatch
from rsparse.ops.fused.lists import linear_segments, segmented
from rsparse.ops.fused.masked_tiles import masked_tiles
from rsparse.ops.fused.reference import ReferenceOps, act_mul, keep, rms_norm
from rsparse.ops.fused.rows import RowOps
from rsparse.ops.fused.select import select
from rsparse.ops.fused.triton_ops import TritonOps
from rsparse.ops.fused.types import ROWS
from tests.ops.fused import problems
from tests.ops.fused.interpreted_kernels import ATTENTION, Poisoned, assert_lists, empty, read, source
from tests.support.tolerance import assert_close_rms

DEVICE, REFERENCE = torch.device("cuda"), ReferenceOps()
pytestmark = [
    pytest.mark.skipif(dispatch.refusal("triton", DEVICE, torch.bfloat16) is not None, reason="no GPU that kernels run on"),
    pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str),
]
each_number_of_rows = pytest.mark.parametrize("rows", [1, 2, 4, ROWS])
LARGE = (4096, (4096, 1024, 1024), (0, 1, 2))


@contextlib.contextmanager
def poisoned():
    """New memory holds NaN. For kernels alone: cuBLAS is not deterministic without settings of its own."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def computed(kernels, name, *arguments):
    """What the op gives where its output and scratch memory held NaN: the bits that it gives in memory as it comes."""
    usual = kernels.workspace
    kernels.workspace = Poisoned(DEVICE)
    with poisoned():
        found = getattr(kernels, name)(*arguments)
    kernels.workspace.counters(1)
    kernels.workspace = usual
    assert torch.equal(found, getattr(kernels, name)(*arguments))
    return found


def group_of(*arguments, **options):
    return problems.on(DEVICE, problems.group(*arguments, **options))


def inputs(rows, columns, kind, dtype):
    """(x, its norm or None, what a linear reads by the reference)."""
    x = source(rows, columns, kind, dtype).to(DEVICE)
    if kind in ("norm", "plus_one"):
        norm = problems.on(DEVICE, problems.norm(columns, dtype, plus_one=kind == "plus_one"))
        return x, norm, rms_norm(x, norm)
    return x, None, x if kind == "plain" else act_mul(x, kind)


def projected(kernels, kind, x, norm, group, add=None):
    if norm is not None:
        return computed(kernels, "norm_project", x, norm, group, add)
    return (
        computed(kernels, "project", x, group, add)
        if kind == "plain"
        else computed(kernels, "act_project", x, kind, group, add)
    )


def own_input(kernels, kind, x, norm, group):
    """What the op's select makes of x, program by program as there: a last bit of it decides a mask."""
    rows, columns = len(x), group.in_features
    tiles = kernels.tiles(group) if rows == 1 else kernels.row_tiles(group)
    length, _ = segmented(columns, tiles.split) if rows <= kernels.gather_rows else linear_segments(columns)
    return read(x, columns, kind if norm is None else "norm", norm, length=length)


SELECTED = [(150, 64, kind) for kind in ("norm", "plus_one", "silu", "gelu_tanh", "plain")]


@pytest.mark.parametrize(("columns", "length", "kind"), [*SELECTED, (5, 16, "silu"), (577, 304, "norm")])
@each_number_of_rows
def test_masks_bit_for_bit(rows, columns, length, kind, dtype):
    """On the kernel's own input, at the threshold too; by one-hot V, z is what the mask of each section drops."""
    x, norm, expected = inputs(rows, columns, kind, dtype)
    how = {"kind": kind if norm is None else "norm", "norm": norm}
    made = read(x, columns, **how, length=length)
    assert_close_rms(made, expected, dtype)
    masks, rank = (2, 0, 1), -(-columns // 8) * 8
    group = group_of(columns, (8, 8, 8), masks, dtype=dtype)
    scores = made[0].abs().float() * group.channel_scale
    group = replace(group, threshold=scores.sort(-1).values[range(3), [columns * part // 8 for part in (3, 4, 6)]])
    sparse = torch.arange(rows, device=DEVICE) % 4 != 1
    V = torch.eye(columns, rank, dtype=dtype, device=DEVICE).repeat(1, 3)
    lists = empty(rows, columns, 3, dtype, length=length, sections=3, rank=rank, device=DEVICE)
    select(x, lists, group.threshold, group.channel_scale, V, masks, **how, sparse=sparse)
    keeps = [keep(made, group, mask) | ~sparse[:, None] for mask in range(3)]
    assert all(0 < m.sum() < m.numel() for m in keeps)
    assert_lists(lists, made, keeps)
    z = lists.z.sum(0).view(rows, 3, rank)[:, :, :columns]
    dropped = torch.stack([torch.where(keeps[mask], 0, made) for mask in masks], 1).float()
    if norm is None or rows == 1:
        assert torch.equal(z, dropped)
    else:  # made for one row alone, whose squares are then summed in another order
        assert_close_rms(z, dropped, dtype)


SHAPES = [
    (150, (40, 17, 17), (0, 1, 2), "norm"),
    (577, (33, 33), (0, 0), "plus_one"),
    (2056, (264,), (0,), "silu"),
    (300, (256, 120), (1, 0), "plain"),
]


@pytest.mark.parametrize(("columns", "outs", "masks", "kind"), SHAPES)
@pytest.mark.parametrize("rank", [0, 24])
@each_number_of_rows
def test_project(rows, rank, columns, outs, masks, kind, dtype):
    """By lists of what any row keeps, and several rows with every channel; each row has its own masks."""
    group, add = group_of(columns, outs, masks, rank, dtype), problems.random(5)(rows, sum(outs)).to(DEVICE, dtype)
    x, norm, _ = inputs(rows, columns, kind, dtype)
    for gather_rows in {1, rows}:
        kernels = TritonOps(DEVICE, gather_rows=gather_rows)
        found = projected(kernels, kind, x, norm, group, add)
        expected = REFERENCE.project(own_input(kernels, kind, x, norm, group), group, add)
        assert_close_rms(found, expected, dtype)


@pytest.mark.parametrize("level", [float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [1, 4])
def test_nothing_kept_and_everything_kept(rows, level, dtype):
    group = group_of(577, (33, 70), (0, 1), 24, dtype)
    group = replace(group, threshold=torch.full_like(group.threshold, level))
    x, norm, expected = inputs(rows, 577, "norm", dtype)
    found = projected(TritonOps(DEVICE, gather_rows=rows), "norm", x, norm, group)
    assert_close_rms(found, REFERENCE.project(expected, group), dtype)


@pytest.mark.parametrize("kind", ["norm", "silu", "gelu_tanh", "plain"])
@pytest.mark.parametrize("made", [TritonOps, RowOps])
@each_number_of_rows
def test_dense(rows, made, kind, dtype):
    """Stored by input channel, and by output row."""
    group, add = group_of(300, (130, 61), dtype=dtype, dense=True), problems.random(5)(rows, 191).to(DEVICE, dtype)
    if made is RowOps:
        group = replace(group, weight=group.weight.T.contiguous().T)
    x, norm, expected = inputs(rows, 300, kind, dtype)
    found = projected(made(DEVICE), kind, x, norm, group, add)
    assert_close_rms(found, REFERENCE.project(expected, group, add), dtype)


@pytest.mark.parametrize("softcap", [None, 5.0])
@each_number_of_rows
def test_norm_and_head(rows, softcap, dtype):
    kind = "norm" if softcap is None else "plus_one"
    x, norm, _ = inputs(rows, 577, kind, dtype)
    weight, kernels = problems.random(6)(1003, 577).to(DEVICE, dtype), TritonOps(DEVICE)
    for add in (None, x):
        assert_close_rms(computed(kernels, "norm", x, norm, add), REFERENCE.norm(x, norm, add), dtype)
    logits = computed(kernels, "head", x, norm, weight, softcap)
    assert logits.dtype == torch.float32
    assert_close_rms(logits, REFERENCE.head(x, norm, weight, softcap), dtype)


EIGHT_ROWS = {"rows": 8, "heads": 14, "kv_heads": 2, "d": 64, "length": 1024, "slot": 1000, "padded": True}


def attention_of(dtype, **case):
    weight = problems.norm(case["d"], dtype, plus_one="softcap" in case)
    normed = {"q_norm": weight, "k_norm": weight} if case["rows"] != 1 else {}
    qkv, cache, cos_sin, attention = problems.attention(**case, dtype=dtype, **normed)
    return qkv.to(DEVICE), problems.on(DEVICE, cache), cos_sin.to(DEVICE), problems.on(DEVICE, attention)


@pytest.mark.parametrize("case", [*ATTENTION, EIGHT_ROWS])
def test_attention(case, dtype):
    qkv, cache, cos_sin, attention = attention_of(dtype, **case)
    expected, kernels = problems.copied(cache), TritonOps(DEVICE)
    wanted = REFERENCE.attend(qkv, expected, cos_sin, attention)
    for programs in (1, kernels.programs):
        kernels.programs = programs
        own = problems.copied(cache)
        assert_close_rms(computed(kernels, "attend", qkv, own, cos_sin, attention), wanted, dtype)
        assert torch.equal(own.v.nan_to_num(), expected.v.nan_to_num())
        assert_close_rms(own.k.nan_to_num(), expected.k.nan_to_num(), dtype)
        assert torch.equal(own.k.isnan(), expected.k.isnan())


def test_masked_tiles(dtype):
    group = group_of(577, (264,), dtype=dtype, scaled=False, bias=False)
    x, tiles = source(1, 577, "plain", dtype).to(DEVICE), TritonOps(DEVICE).tiles(group)
    with poisoned():
        y = masked_tiles(x, group.threshold, group.weight, Poisoned(DEVICE), tiles)
    assert_close_rms(y, REFERENCE.project(x, group), dtype)


@pytest.mark.parametrize("gather_rows", [1, ROWS])
@each_number_of_rows
def test_the_same_bits_every_time(rows, gather_rows, dtype):
    """Parts come in any order and are added in one."""
    columns, outs, masks = LARGE
    kernels, group = TritonOps(DEVICE, gather_rows=gather_rows), group_of(columns, outs, masks, 24, dtype)
    x, norm, _ = inputs(rows, columns, "norm", dtype)
    attention = attention_of(dtype, **EIGHT_ROWS)
    calls = (lambda: kernels.norm_project(x, norm, group), lambda: kernels.attend(*attention))
    first = [call() for call in calls]
    for _ in range(50):
        assert all(torch.equal(call(), wanted) for call, wanted in zip(calls, first, strict=True))
    assert not kernels.workspace.counters(1).any()
