"""The ops that have gradients: the same masks, and two gradients with formulas of their own."""

from __future__ import annotations

import math

import pytest
import torch

from rsparse.compensation.trainable import BACKEND, TEMPERATURE, mask_rows
from rsparse.ops import mask_rows as exact
from rsparse.ops import reference
from rsparse.row_policy import RowPolicy
from rsparse.sparse_linear import RSparseLinear
from tests.support.tolerance import assert_close_rms

DTYPES = [torch.float32, torch.bfloat16]


def problem(dtype=torch.float32, scaled=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 16, generator=generator).to(dtype)
    x[0, 0, :4] = torch.tensor([0.5, -0.5, 0.0, -0.0])
    c = torch.rand(16, generator=generator) + 0.5 if scaled else None
    return x, c, torch.rand(2, 5, generator=generator) > 0.4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("some_rows", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_forward_is_that_of_the_ops(scaled, some_rows, rank, dtype):
    x, c, rows = problem(dtype, scaled)
    row_mask, t = rows if some_rows else None, torch.tensor(0.5)
    expected = exact.mask_rows(x, c, t, row_mask, rank=rank)
    for given in (x, x.clone().requires_grad_()):
        found = mask_rows(given, c, t.clone().requires_grad_(), row_mask, rank=rank)
        assert torch.equal(found.kept, expected.kept)
        assert torch.equal(found.counts, expected.counts)
        assert not found.counts.requires_grad
        assert found.joined is None
        assert (found.dropped is None) == (rank == 0)
        if rank:
            assert torch.equal(found.dropped, expected.dropped)


@pytest.mark.parametrize("learned", [False, True], ids=["t fixed", "t learned"])
@pytest.mark.parametrize("some_rows", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_gradient_in_x_is_that_of_a_fixed_mask(scaled, some_rows, learned):
    x, c, rows = problem(scaled=scaled)
    row_mask = rows if some_rows else None
    m = reference.keep_mask(x, c, 0.5)
    m = m if row_mask is None else m | ~row_mask.unsqueeze(-1)
    weights = torch.randn(2, 2, 5, 16, generator=torch.Generator().manual_seed(1))
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = mask_rows(one, c, torch.tensor(0.5, requires_grad=learned), row_mask, rank=3)
    ((found.kept * weights[0]).sum() + (found.dropped * weights[1]).sum()).backward()
    ((torch.where(m, other, 0) * weights[0]).sum() + (torch.where(m, 0, other) * weights[1]).sum()).backward()
    assert_close_rms(one.grad, other.grad, torch.float32)


def test_the_gradient_in_t_by_hand():
    """σ'((log s − log t)/T)/T at s = 0.5, 1, 2 of t = 1: with T = 0.4, σ is 1/(1 + s^−2.5)."""
    assert TEMPERATURE == 0.4
    x, t = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor(1.0, requires_grad=True)
    d_kept = torch.tensor([[3.0, 5.0, 7.0]])
    (mask_rows(x, None, t).kept * d_kept).sum().backward()
    near = [1 / (1 + s**-2.5) for s in (0.5, 1.0, 2.0)]
    slope = [value * (1 - value) / 0.4 for value in near]
    assert slope[1] == 0.625
    expected = -(3 * 0.5 * slope[0] + 5 * -1.0 * slope[1] + 7 * 2.0 * slope[2])
    assert float(t.grad) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_the_gradient_in_t_is_the_formula_in_fp64(scaled, dtype):
    """Of kept and dropped together, over sparse rows alone, with scores of 0 that add nothing."""
    x, c, rows = problem(dtype, scaled)
    t = torch.tensor(0.3, requires_grad=True)
    weights = torch.randn(2, 2, 5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = mask_rows(x, c, t, rows, rank=3)
    ((found.kept * weights[0]).sum() + (found.dropped * weights[1]).sum()).backward()
    expected = 0.0
    for place in rows.nonzero().tolist():
        for channel in range(16):
            value = float(x[(*place, channel)])
            score = abs(value) * (1.0 if c is None else float(c[channel]))
            if score > 0:
                near = 1 / (1 + math.exp(-(math.log(score) - math.log(0.3)) / TEMPERATURE))
                d = float(weights[(0, *place, channel)]) - float(weights[(1, *place, channel)])
                expected -= d * value * near * (1 - near) / TEMPERATURE / 0.3
    assert t.grad.dtype == torch.float32
    assert float(t.grad) == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 0.02)


def test_dense_rows_say_nothing_of_t():
    x, c, rows = problem()
    t = torch.tensor(0.5, requires_grad=True)
    given = x.clone().requires_grad_()
    kept = mask_rows(given, c, t, torch.zeros_like(rows)).kept
    kept.sum().backward()
    assert float(t.grad) == 0
    assert torch.equal(given.grad, torch.ones_like(x))
    t.grad, whole = None, torch.zeros(())
    for row_mask in (rows, ~rows):
        mask_rows(x, c, t, row_mask).kept.sum().backward()
        whole, t.grad = whole + t.grad, None
    mask_rows(x, c, t).kept.sum().backward()
    assert float(t.grad) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("smallest", [1e-30, 1e-20])
def test_a_threshold_near_zero_has_a_finite_gradient(smallest):
    """A unit that keeps all but its zeros."""
    t = torch.tensor(smallest, requires_grad=True)
    x = torch.tensor([[0.0, -0.0, 1.0, 1e-20]])
    mask_rows(x, None, t).kept.sum().backward()
    assert t.grad.isfinite()


def test_a_linear_with_these_ops_learns_all_that_is_its_own():
    """y and its gradients, against autograd through the formula with a mask that is given."""
    torch.manual_seed(0)
    policy = RowPolicy()
    policy.sparse = torch.tensor([[True, False, True], [True, True, False]])
    made = RSparseLinear(torch.nn.Linear(12, 7), "unit", policy, BACKEND, rank=3, scaled=True, compensated=True)
    made.requires_grad_(False)
    own = {"U": (7, 3), "V": (12, 3), "compensation": (7,)}
    for name, shape in own.items():
        setattr(made, name, torch.randn(shape, requires_grad=True))
    made.threshold = torch.tensor(0.6, requires_grad=True)
    x = torch.randn(2, 3, 12, requires_grad=True)
    m = (x.detach().abs() > 0.6) | ~policy.sparse.unsqueeze(-1)
    y = made(x)
    W, b, U, V, extra = made.weight, made.bias, made.U, made.V, made.compensation
    expected = (x * m) @ W.T + b + (x * ~m) @ V @ U.T + extra * policy.sparse.unsqueeze(-1)
    assert_close_rms(y.detach(), expected.detach(), torch.float32)
    weights = torch.randn(2, 3, 7)
    found = torch.autograd.grad((y * weights).sum(), (x, U, V, extra, made.threshold))
    wanted = torch.autograd.grad((expected * weights).sum(), (x, U, V, extra))
    for one, other in zip(found, wanted, strict=False):
        assert_close_rms(one, other, torch.float32)
    assert float(found[-1]) != 0
