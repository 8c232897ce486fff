"""The Triton kernel of mask_rows on a CPU. Run by test_mask_triton.py: TRITON_INTERPRET counts where Triton is imported."""

from __future__ import annotations

import pytest
import torch

from rsparse.ops import mask_rows, reference
from rsparse.ops.mask_triton import _split, split
from tests.support.tolerance import RELATIVE_RMS, relative_rms

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def poisoned():
    """Deterministic torch fills new memory with NaN, or the largest integer: what the kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(shape, dtype=torch.float32):
    """x with zeros, values of exactly the threshold 0.75, an infinity and a NaN; c; a row mask."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    special = torch.tensor([0.0, -0.0, 0.75, -0.75, float("inf"), float("nan")], dtype=dtype)
    x.view(-1)[: len(special)] = special[: x.numel()]
    return x, torch.rand(shape[-1], generator=generator) + 0.5, torch.rand(shape[:-1], generator=generator) > 0.4


def mask(x, c, t, row_mask):
    m = reference.keep_mask(x, c, t)
    return m if row_mask is None else m | ~row_mask.unsqueeze(-1)


def same(actual, expected):
    """Bit for bit, but that a NaN is any NaN."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def check(x, c, t, row_mask, rank):
    m, room = mask(x, c, t, row_mask), -(-rank // 8) * 8
    kept, dropped, counts, buffer = split(x, c, t, row_mask, dropped=rank > 0, room=room)
    same(kept, torch.where(m, x, 0))
    same(counts, m.sum(-1, dtype=torch.int32))
    assert (dropped is None) == (rank == 0)
    if dropped is not None:
        same(dropped, torch.where(m, 0, x))
    assert buffer.shape == (*x.shape[:-1], x.shape[-1] + room)
    assert buffer.is_contiguous()
    assert buffer.data_ptr() == kept.data_ptr()
    assert buffer[..., x.shape[-1] :].isnan().all(), "the kernel wrote into the room for z"


# Tiles are 4 rows of 256 channels, and from 1025 channels on 2 rows of 512.
@pytest.mark.parametrize("shape", [(1, 1), (4, 256), (1, 3, 33), (5, 1, 255), (3, 7, 257), (2, 1024), (3, 1025), (2, 1, 1600)])
@pytest.mark.parametrize("rank", [0, 5, 8])
def test_any_shape(shape, rank):
    x, c, row_mask = problem(shape)
    check(x, c, torch.tensor(0.75), row_mask, rank)


@pytest.mark.parametrize("rank", [0, 5, 8])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_arguments(dtype, scaled, masked, rank):
    x, c, row_mask = problem((2, 5, 37), dtype)
    for t in (0.0, 0.75, 0.7500001, 1e9):
        check(x, c if scaled else None, torch.tensor(t), row_mask if masked else None, rank)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_contiguous(dtype):
    x, c, row_mask = problem((7, 6, 40), dtype)
    wide = c.repeat_interleave(2)
    for strided in (x.transpose(0, 1), x[::2], x[..., 1:34], x[:, :1].expand(7, 6, 40)):
        rows = row_mask.transpose(0, 1) if strided.shape[0] == 6 else row_mask[: len(strided)]
        check(strided, wide[::2][: strided.shape[-1]], torch.tensor(0.5), rows, 5)


def test_no_rows():
    check(torch.empty(0, 3, 16), None, torch.tensor(0.5), None, 8)


def test_the_score_is_made_and_compared_in_fp32():
    x = torch.tensor([[1.0078125, 3.0]], dtype=torch.bfloat16)
    c = torch.tensor([1.003, 1 / 3])  # 1.0078125 · 1.003 = 1.01083…, which bf16 rounds to 1.0078125
    for t, expected in ((1.0105, [True, False]), (1.0, [True, bool(3.0 * c[1] > 1)])):
        kept, _, _, _ = split(x, c, torch.tensor(t), None, dropped=False)
        assert kept.bool().tolist() == [expected]
    for t, expected in ((0.999, 2), (1.007, 2), (1.0086, 1)):
        assert split(x, None, torch.tensor(t), None, dropped=False)[2].tolist() == [expected]


def test_offsets_pass_2_to_the_31(monkeypatch):
    """The last tile alone of 149798 rows of 14336 channels: 4 GiB of addresses, of which two rows become memory."""
    from triton.runtime.interpreter import GridExecutor, interpreter_builder

    columns = 14336
    rows = 2**31 // columns + 1
    rows += rows % 2
    torch.use_deterministic_algorithms(False)  # it would fill all of that, as copying the results back would
    x = torch.empty(rows, columns, dtype=torch.float16)
    last = torch.randn(2, columns, generator=torch.Generator().manual_seed(0)).half()
    x[-2:] = last
    dropped, counts = torch.empty_like(x), torch.zeros(rows, dtype=torch.int32)
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *args: None)
    monkeypatch.setattr(
        interpreter_builder, "set_grid_idx", lambda *at: setattr(interpreter_builder, "grid_idx", (rows // 2 - 1, 0, 0))
    )
    _split[(1,)](x, None, torch.tensor(0.5), None, x, dropped, counts, rows, columns, 0, 2, 512)
    m = reference.keep_mask(last, None, 0.5)
    same(x[-2:], torch.where(m, last, 0))
    same(dropped[-2:], torch.where(m, 0, last))
    assert counts[-3:].tolist() == [0, *m.sum(-1)]


@pytest.mark.parametrize("shape", [(2, 40, 37), (36, 37)])
@pytest.mark.parametrize("rank", [0, 5, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_from_mask_to_product(dtype, rank, shape):
    """mask_rows and masked_gemm as on a GPU, against the same without the kernel. From as many rows as channels, one GEMM."""
    x, c, row_mask = problem(shape, dtype)
    x, t = x.nan_to_num(0.1, posinf=3), torch.tensor(0.75)
    generator = torch.Generator().manual_seed(1)
    W, U, V, bias = (torch.randn(size, generator=generator).to(dtype) / 3 for size in ((20, 37), (20, rank), (37, rank), (20,)))
    packed = reference.pack(W, U, V) if rank else reference.pack(W)
    rows = mask_rows._on_gpu(x, c, t, row_mask, rank)
    plain = mask_rows._plain(x, c, t, row_mask, rank)
    same(rows.kept, plain.kept)
    same(rows.counts, plain.counts)
    assert (rows.joined is not None) == (rank > 0 and shape[:-1] == (2, 40))
    y, expected = (reference.masked_gemm(packed, x, each, bias) for each in (rows, plain))
    assert y.shape == (*shape[:-1], 20)
    assert relative_rms(y, expected) <= RELATIVE_RMS[dtype]


def test_what_is_differentiated_goes_without_the_kernel():
    x, c, _ = problem((40, 37))
    x = x.nan_to_num(0.1, posinf=3).requires_grad_()
    rows = mask_rows._on_gpu(x, c, torch.tensor(0.75), None, 8)
    assert rows.joined is None
    rows.kept.sum().backward()
    assert torch.equal(x.grad, reference.keep_mask(x, c, torch.tensor(0.75)).float())
    with torch.no_grad():
        assert mask_rows._on_gpu(x, c, torch.tensor(0.75), None, 8).joined is not None
