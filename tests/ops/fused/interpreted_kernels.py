"""The fused Triton kernels on a CPU. Run by test_kernels.py: TRITON_INTERPRET counts where Triton is imported."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from triton.runtime import interpreter

from rsparse.ops.fused import triton_ops
from rsparse.ops.fused.lists import Lists
from rsparse.ops.fused.masked_tiles import masked_tiles
from rsparse.ops.fused.reference import ReferenceOps, act_mul, keep, rms_norm
from rsparse.ops.fused.select import select
from rsparse.ops.fused.settings import Tiles
from rsparse.ops.fused.triton_ops import TritonOps
from rsparse.ops.fused.workspace import Workspace
from tests.ops.fused import problems
from tests.support.tolerance import assert_close_rms

CPU = torch.device("cpu")
REFERENCE = ReferenceOps()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL = Tiles(32, 16, 3, 4, 2)


class Poisoned(Workspace):
    """Scratch memory that holds NaN, or the largest index, before each use; counters must be back at 0."""

    def take(self, name, numel, dtype):
        buffer = super().take(name, numel, dtype)
        if name == "counters":
            assert not buffer.any(), "a kernel left a counter behind"
            return buffer
        return buffer.fill_(float("nan") if dtype.is_floating_point else 2**31 - 1)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """bf16 as a GPU has it: Triton 3.7's interpreter multiplies matrices of its bit patterns and truncates what it converts.

    And outputs that start as NaN, which deterministic torch fills new memory with.
    """
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounded(data, source, target, mode):
        if source == interpreter.tl.float32 and target == interpreter.tl.bfloat16:
            return torch.from_numpy(data.copy()).bfloat16().view(torch.uint16).numpy()
        return convert(data, source, target, mode)

    def widened(self, a, b, *rest):
        if a.dtype.scalar == interpreter.tl.bfloat16:
            wide = interpreter.tl.float32
            a, b = (interpreter.TensorHandle(convert(x.data, x.dtype.scalar, wide, None).view("float32"), wide) for x in (a, b))
        return dot(self, a, b, *rest)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widened)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def ops(tiles=SMALL, **options):
    made = TritonOps(CPU, **options)
    made.workspace = Poisoned(CPU)
    made.tiles = made.row_tiles = lambda group: tiles
    return made


def empty(rows, columns, masks, dtype, *, length, compact=True, sections=0, rank=0, device=CPU):
    segments = -(-columns // length)
    room, nan = segments * length, float("nan")
    return Lists(
        torch.full((masks, rows, room), nan, dtype=dtype, device=device),
        torch.full((masks, room), -1, dtype=torch.int32, device=device) if compact else None,
        torch.full((masks, segments), -1, dtype=torch.int32, device=device) if compact else None,
        torch.full((segments, rows, sections * rank), nan, device=device) if rank else None,
        columns=columns, length=length, segments=segments, row_stride=room, rank=rank, compact=compact,
    )  # fmt: skip


def read(x, columns, kind, norm=None, *, length=64):
    """What select itself makes of x: with no threshold and no list, everything."""
    lists = empty(x.shape[0], columns, 1, x.dtype, length=length, compact=False, device=x.device)
    select(x, lists, torch.full((1,), -float("inf"), device=x.device), kind=kind, norm=norm)
    return lists.values[0, :, :columns].clone()


def assert_lists(lists, made, masks):
    """Each segment's channels that any row keeps, ascending, with 0 where a row drops; masks: m [rows, in] of each."""
    for mask, m in enumerate(masks):
        for segment in range(lists.segments):
            part = slice(segment * lists.length, min(lists.columns, (segment + 1) * lists.length))
            kept = m[:, part].any(0).nonzero()[:, 0] + part.start
            count = int(lists.counts[mask, segment])
            assert lists.indices[mask, part.start : part.start + count].tolist() == kept.tolist()
            values = lists.values[mask, :, part.start : part.start + count]
            assert torch.equal(values, torch.where(m, made, 0)[:, kept])


def source(rows, columns, kind, dtype):
    return problems.random(9)(rows, columns * (2 if kind in ("silu", "gelu_tanh") else 1)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["norm", "silu", "gelu_tanh", "plain"])
def test_inputs(kind, dtype):
    """Norm and activation as the reference makes them, but for the order of a sum and a last bit."""
    for plus_one in (False, True):
        x, norm = source(2, 77, kind, dtype), problems.norm(77, dtype, plus_one=plus_one)
        expected = rms_norm(x, norm) if kind == "norm" else x if kind == "plain" else act_mul(x, kind)
        assert_close_rms(read(x, 77, kind, norm if kind == "norm" else None), expected, dtype)


def test_gelu_does_not_overflow():
    x = torch.tensor([[-90.0, -20.0, 0.0, 20.0, 90.0] + [1.0] * 5])
    assert_close_rms(read(x, 5, "gelu_tanh"), act_mul(x, "gelu_tanh"), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("rows", "kind"), [(1, "norm"), (3, "norm"), (1, "silu"), (2, "plain")])
def test_masks_bit_for_bit(rows, kind, scaled, dtype):
    """On the kernel's own input."""
    columns, length = 150, 64
    group = problems.group(columns, (8, 8, 8), (0, 1, 2), dtype=dtype, scaled=scaled)
    x, norm = source(rows, columns, kind, dtype), problems.norm(columns, dtype) if kind == "norm" else None
    made = read(x, columns, kind, norm)
    made.view(-1)[:3] = torch.tensor([0.5, -0.5, 0.0])  # at the threshold is not above it
    x, kind, norm = made, "plain", None
    sparse = torch.tensor([True, False, True])[:rows]
    lists = empty(rows, columns, 3, dtype, length=length)
    select(x, lists, group.threshold, group.channel_scale, kind=kind, norm=norm, sparse=sparse)
    assert_lists(lists, made, [keep(made, group, mask) | ~sparse[:, None] for mask in range(3)])


ONE, FEW, MANY = ((1, "norm"), (1, "silu")), ((2, "norm"),), ((3, "plain"),)
PROJECT = [
    (48, (40,), (0,), 0, torch.bfloat16, ONE + FEW + MANY),
    (150, (40, 17, 17), (0, 1, 2), 0, torch.float32, ONE + FEW + MANY),
    (100, (40, 17, 17), (0, 1, 2), 40, torch.float32, ONE + FEW + MANY),
    (130, (40, 24), (1, 0), 5, torch.bfloat16, ONE + FEW),
    (130, (40, 24), (1, 0), 5, torch.float16, ONE[:1] + FEW),
    (577, (33, 33), (0, 0), 9, torch.float16, ONE[:1] + FEW),
    (5, (3,), (0,), 5, torch.float32, ONE + FEW + MANY),
]


@pytest.mark.parametrize(("columns", "outs", "masks", "rank", "dtype", "inputs"), PROJECT)
def test_project(columns, outs, masks, rank, dtype, inputs):
    """One row and several, each by its lists or whole: TritonOps gathers up to `gather_rows`."""
    group = problems.group(columns, outs, masks, rank, dtype)
    for rows, kind in inputs:
        x, norm = source(rows, columns, kind, dtype), problems.norm(columns, dtype, plus_one=rows == 2)
        add = problems.random(5)(rows, sum(outs)).to(dtype)
        kernels = ops(gather_rows=3 if rows == 3 else 1)
        if kind == "norm":
            actual = kernels.norm_project(x, norm, group, add)
        else:
            actual = kernels.act_project(x, kind, group, add) if kind == "silu" else kernels.project(x, group, add)
        made = read(x, columns, kind, norm if kind == "norm" else None)
        assert_close_rms(actual, REFERENCE.project(made, group, add), dtype)


@pytest.mark.parametrize("tiles", [Tiles(32, 16, 1, 4, 2), Tiles(32, 4, 5, 4, 1), Tiles(64, 64, 20, 8, 3)], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_any_tiles(tiles, rows):
    group = problems.group(200, (70, 30), (0, 1), 12)
    x = source(rows, 200, "plain", torch.float32)
    assert_close_rms(ops(tiles).project(x, group), REFERENCE.project(x, group), torch.float32)


def test_one_part_needs_no_memory_for_parts():
    whole = Tiles(32, 64, 1, 8, 2)
    kernels, group = ops(whole), problems.group(100, (40,))
    x = source(1, 100, "plain", torch.float32)
    kernels.workspace.floats = lambda name, numel: Poisoned.floats(kernels.workspace, name, numel).fill_(7.0)
    kernels.project(x, group)
    assert (kernels.workspace._buffers["parts", torch.float32] == 7.0).all()
    for tiles, compact, segments in ((whole, True, 1), (SMALL, True, 3), (SMALL, False, 1)):  # of 100 channels
        assert kernels._lists(x, group, tiles, compact=compact).segments == segments


def test_several_rows_have_settings_of_their_own(monkeypatch):
    asked = []
    monkeypatch.setattr(triton_ops, "tiles_for", lambda gpu, kind, *shape: asked.append((kind, *shape)) or SMALL)
    kernels, group, dense = TritonOps(CPU), problems.group(48, (40,)), problems.group(48, (40,), dense=True)
    for each in (group, dense):
        for rows in (1, 2):
            kernels.project(source(rows, 48, "plain", torch.float32), each)
    assert asked == [("gather", 48, 40), ("rows", 48, 40), ("dense", 48, 40), ("rows", 48, 40)]
    kernels.row_tiles(replace(dense, weight=dense.weight.T.contiguous().T))
    assert asked[-1] == ("dense", 48, 40), "by output row there is one kind"


def test_many_rows_take_every_channel_and_the_same_function():
    group = problems.group(140, (40, 17), (0, 1), 8)
    x, norm = source(3, 140, "norm", torch.float32), problems.norm(140)
    gathered, whole = (ops(gather_rows=most).norm_project(x, norm, group) for most in (8, 1))
    assert_close_rms(gathered, whole, torch.float32)
    assert_close_rms(whole, REFERENCE.norm_project(x, norm, group), torch.float32)


@pytest.mark.parametrize("rows", [1, 4])
def test_dense(rows):
    group = problems.group(100, (30, 20, 14), (0, 1, 2), dense=True)
    x, norm = source(rows, 100, "plain", torch.float32), problems.norm(100)
    shared = group.bias.expand(rows, -1)  # one row's memory for all
    assert_close_rms(ops().project(x, group, shared), x @ group.weight + 2 * group.bias, torch.float32)
    assert_close_rms(ops().norm_project(x, norm, group), REFERENCE.norm_project(x, norm, group), torch.float32)


def test_nothing_kept_and_everything_kept():
    group, x = problems.group(100, (40,), rank=8), source(1, 100, "plain", torch.float32)
    for level in (1e9, -float("inf")):
        each = replace(group, threshold=torch.tensor([level]))
        assert_close_rms(ops().project(x, each), REFERENCE.project(x, each), torch.float32)


def test_a_group_beside_others_in_one_memory():
    group, x = problems.group(100, (40, 24), (0, 1)), source(1, 100, "plain", torch.float32)
    wide = torch.full((100, 80), float("nan"))
    wide[:, 8:72] = group.weight
    view = replace(group, weight=wide[:, 8:72])
    assert torch.equal(ops().project(x, view), ops().project(x, group))


def test_the_same_bits_in_any_order_of_programs(monkeypatch):
    """Each output is one program's: on a GPU, two that write it would race."""
    group, x = problems.group(100, (40, 17, 20), (0, 1, 2), 8), source(1, 100, "plain", torch.float32)
    expected, builder = ops().project(x, group), interpreter.interpreter_builder
    forward = builder.set_grid_idx

    def backward(*at):
        forward(*(size - 1 - index for size, index in zip(builder.grid_dim, at, strict=True)))

    monkeypatch.setattr(builder, "set_grid_idx", backward)
    assert torch.equal(ops().project(x, group), expected)


def test_the_same_bits_again():
    group, x = problems.group(150, (40, 17), (0, 1), 8, torch.float16), source(2, 150, "plain", torch.float16)
    kernels = ops()
    assert torch.equal(kernels.project(x, group), kernels.project(x, group))


def test_composites():
    x, norm = source(2, 32, "plain", torch.float32), problems.norm(32)
    up, down, o = problems.group(32, (48, 48), (0, 1), 8), problems.group(48, (32,)), problems.group(64, (32,))
    assert_close_rms(ops().mlp(x, norm, up, "silu", down, x), REFERENCE.mlp(x, norm, up, "silu", down, x), torch.float32)
    qkv, cache, cos_sin, attention = problems.attention(2, 4, 2, 16, 8, 3)
    twin = problems.copied(cache)
    expected = REFERENCE.attend_project(qkv, twin, cos_sin, attention, o, x)
    assert_close_rms(ops().attend_project(qkv, cache, cos_sin, attention, o, x), expected, torch.float32)


ATTENTION = [
    {"rows": 1, "heads": 4, "kv_heads": 2, "d": 16, "length": 300, "slot": 270},
    {"rows": 2, "heads": 4, "kv_heads": 4, "d": 20, "length": 300, "slot": 5, "softcap": 3.0},
    {"rows": 3, "heads": 8, "kv_heads": 2, "d": 64, "length": 300, "slot": 200, "window": 50, "padded": True},
    {"rows": 2, "heads": 18, "kv_heads": 1, "d": 16, "length": 80, "slot": 0},
    {"rows": 2, "heads": 2, "kv_heads": 1, "d": 16, "length": 300, "slot": 299, "window": 1},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ATTENTION)
def test_attention(case, dtype):
    weight = problems.norm(case["d"], dtype, plus_one="softcap" in case)
    normed = {"q_norm": weight, "k_norm": weight} if case["rows"] != 1 else {}
    qkv, cache, cos_sin, attention = problems.attention(**case, dtype=dtype, **normed)
    expected, kernels = problems.copied(cache), ops()
    wanted = REFERENCE.attend(qkv, expected, cos_sin, attention)
    for programs in (1, 64):
        kernels.programs = programs
        own = problems.copied(cache)
        assert_close_rms(kernels.attend(qkv, own, cos_sin, attention), wanted, dtype)
        assert torch.equal(own.v.nan_to_num(), expected.v.nan_to_num())
        assert_close_rms(own.k.nan_to_num(), expected.k.nan_to_num(), dtype)
        assert torch.equal(own.k.isnan(), expected.k.isnan())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3])
def test_head_and_norm(rows, dtype):
    x, W = source(rows, 100, "plain", dtype), problems.random(6)(77, 100).to(dtype)
    for softcap, norm in ((None, problems.norm(100, dtype)), (5.0, problems.norm(100, dtype, plus_one=True))):
        assert_close_rms(ops().norm(x, norm, x), REFERENCE.norm(x, norm, x), dtype)
        logits = ops().head(x, norm, W, softcap)
        assert logits.dtype == torch.float32
        assert_close_rms(logits, REFERENCE.head(x, norm, W, softcap), dtype)


def test_masked_tiles():
    group, x = problems.group(150, (70,), scaled=False, bias=False), source(1, 150, "plain", torch.float32)
    y = masked_tiles(x, group.threshold, group.weight, Poisoned(CPU), SMALL)
    assert_close_rms(y, REFERENCE.project(x, group), torch.float32)
