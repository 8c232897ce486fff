"""The `triton` backend's ops on a CPU. Run by test_triton_kernel.py: TRITON_INTERPRET counts where Triton is imported."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rsparse.ops import reference, triton_kernel
from rsparse.ops.dispatch import Backend
from rsparse.row_policy import RowPolicy
from rsparse.sparse_linear import RSparseLinear
from tests.support.tolerance import assert_close_rms

OPS = ("pack", "mask_rows", "select", "gather_gemv", "masked_gemm")
TRITON = Backend("triton", triton_kernel.GATHER_ROWS, *(getattr(triton_kernel, op) for op in OPS), triton_kernel.prepare)


@pytest.fixture(autouse=True)
def poisoned():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(columns, out, rank, rows, dtype=torch.float32):
    torch.manual_seed(0)
    linear = nn.Linear(columns, out).to(dtype).requires_grad_(False)
    U, V = torch.randn(out, rank).to(dtype), (torch.randn(columns, rank) / columns**0.5).to(dtype)
    return linear, torch.randn(rows, columns).to(dtype), torch.rand(columns) + 0.5, *((U, V) if rank else (None, None))


@pytest.mark.parametrize(
    ("columns", "out", "rank", "rows", "dtype"),
    [
        (48, 40, 0, 1, torch.float32),
        (300, 77, 5, 3, torch.float32),
        (577, 64, 16, 1, torch.float16),
        (2100, 8, 3, 4, torch.float32),
    ],
)
@pytest.mark.parametrize("prepared", [False, True])
def test_select_and_gather(columns, out, rank, rows, dtype, prepared):
    linear, x, c, U, V = problem(columns, out, rank, rows, dtype)
    if prepared:
        triton_kernel.prepare([linear])
    t, mu, row_mask = torch.tensor(0.5), torch.full((columns,), 0.1, dtype=dtype), torch.arange(rows) != 1
    for given in ((c, t), (None, t, mu), (c, t, None, V, row_mask)):
        chosen = triton_kernel.select(x, *given)
        y = triton_kernel.gather_gemv(triton_kernel.pack(linear.weight, U, V), *chosen, linear.bias)
        expected = reference.select(x, *given)
        packed = reference.pack(linear.weight, *((U, V) if expected.z is not None else (None, None)))
        assert_close_rms(y, reference.gather_gemv(packed, *expected, linear.bias), dtype)


def sparse_linear(backend, columns=96, out=40, rank=5):
    linear, _, c, U, V = problem(columns, out, rank, 1)
    policy = RowPolicy()
    made = RSparseLinear(linear, "unit", policy, backend, rank=rank, scaled=True, compensated=True)
    made.U, made.V, made.channel_scale, made.compensation = U, V, c, torch.randn(out)
    made.threshold.fill_(0.5)
    return made


@pytest.mark.parametrize("tokens", [1, 4, 9])
def test_through_a_sparse_linear_and_its_fake_forms(tokens):
    """Eager and as torch.compile traces it: up to GATHER_ROWS rows the kernels, then a masked product."""
    ours, theirs = (sparse_linear(each) for each in (TRITON, Backend("reference", 0, *(getattr(reference, op) for op in OPS))))
    triton_kernel.prepare([ours])
    x = torch.randn(1, tokens, 96)
    expected = theirs(x)
    assert_close_rms(ours(x), expected, torch.float32)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_close_rms(torch.compile(ours, backend="aot_eager", fullgraph=True)(x), expected, torch.float32)
    ours.policy.sparse = theirs.policy.sparse = torch.arange(tokens)[None] % 2 == 0
    assert_close_rms(ours(x), theirs(x), torch.float32)


def test_the_operators_keep_torchs_contract():
    linear, x, c, U, V = problem(96, 40, 5, 2)
    triton_kernel.prepare([linear])
    # Values are compared elsewhere: what lies behind the kept channels is whatever the memory held.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(triton_kernel._select, (x, c, torch.tensor(0.5), V, None), test_utils=checks)
    indices, values, counts, z = triton_kernel.select(x, c, torch.tensor(0.5), V=V)
    torch.library.opcheck(triton_kernel._gather, (linear.weight, U, indices, values, counts, z, linear.bias))
