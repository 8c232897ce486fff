"""Leading subspaces against torch.linalg.svd, and the factors that a GPU makes of them, here on a CPU."""

from __future__ import annotations

import pytest
import torch

from rsparse.lowrank import fit_to_dropped, truncated_svd
from rsparse.lowrank.leading import leading
from tests.lowrank.test_dropped import closed_form, loss, problem
from tests.lowrank.test_svd import SHAPES, error, optimal, weight


@pytest.fixture(autouse=True)
def rotated(monkeypatch):
    """In proportion to these small matrices."""
    monkeypatch.setattr("rsparse.lowrank.leading.ROTATED", 24)


@pytest.fixture
def on_gpu(monkeypatch):
    for module in ("svd", "dropped"):
        monkeypatch.setattr(f"rsparse.lowrank.{module}.preferred", lambda a: True)


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rank", [1, 7, 29, 60, 96])  # 96 is what rho = 0 at sparsity 0.2 asks of a wide matrix
@pytest.mark.parametrize("shape", SHAPES)
def test_factors_and_their_prefixes_are_near_the_optimum(on_gpu, shape, rank, decay):
    a = weight(*shape, decay=decay)
    U, V = truncated_svd(a, rank)
    assert (U.shape, V.shape) == ((shape[0], rank), (shape[1], rank))
    for prefix in {rank, (rank + 1) // 2, (rank + 7) // 8, 1}:
        best = optimal(a, prefix)
        worst = 1.001 if prefix < 10 else 1.015  # sizes of a hundred scatter: at thousands it is 0.5 %
        assert best * (1 - 1e-5) <= error(a, U[:, :prefix], V[:, :prefix]) <= worst * best


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prefix_is_what_a_lower_rank_gives(shape):
    a = weight(*shape, decay=0.5).double()
    whole = leading(a, 60)
    for rank in (1, 7, 24, 25, 59):
        cosines = (whole[:, :rank] * leading(a, rank)).sum(0)
        assert torch.allclose(cosines.abs(), torch.ones(rank, dtype=a.dtype), atol=1e-6)
    assert torch.allclose(leading(a.float(), 60).T @ leading(a.float(), 60), torch.eye(60), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_scale_of_the_weight_does_not_matter(on_gpu, scale):
    a = weight(120, 200, decay=0.5)
    assert error(a * scale, *truncated_svd(a * scale, 20)) == pytest.approx(scale * error(a, *truncated_svd(a, 20)), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_the_weight(on_gpu, shape):
    a = weight(*shape)
    U, V = truncated_svd(a, 1000)
    assert U.shape[1] == V.shape[1] == min(shape)
    assert error(a, U, V) < 1e-5 * float(a.norm())


@pytest.mark.parametrize("rank", [2, 20, 60])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_of_lower_rank_than_asked(on_gpu, shape, rank):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(shape[0], 2, generator=generator) @ torch.randn(2, shape[1], generator=generator)
    U, V = truncated_svd(a, rank)
    assert error(a, U, V) < 1e-4 * float(a.norm())
    assert float(U.norm(dim=0).max()) < 1.001


def test_a_zero_weight_has_finite_factors(on_gpu):
    U, V = truncated_svd(torch.zeros(120, 200), 60)
    assert torch.equal(U @ V.T, torch.zeros(120, 200))


def test_low_precision_weights_are_decomposed_in_fp32(on_gpu):
    a = weight(120, 200, dtype=torch.bfloat16)
    U, V = truncated_svd(a, 60)
    assert U.dtype == V.dtype == torch.float32
    assert error(a, U, V) <= 1.01 * optimal(a, 60)


def test_the_same_seed_gives_the_same_and_leaves_the_generator_alone():
    a = weight(120, 200)
    before = torch.random.get_rng_state()
    assert torch.equal(leading(a, 5, seed=3), leading(a, 5, seed=3))
    assert not torch.equal(leading(a, 5, seed=3), leading(a, 5, seed=4))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("rows", [40, 300])
@pytest.mark.parametrize("rank", [1, 12, 30])
@pytest.mark.parametrize("shape", [(60, 80), (80, 60)])
def test_a_fit_to_dropped_inputs_is_near_its_optimum(on_gpu, shape, rank, rows):
    W, dropped = problem(rows, *shape)
    P, V = fit_to_dropped(W, dropped, rank)
    for prefix in {rank, (rank + 1) // 2}:
        best = loss(W, closed_form(W, dropped, prefix), dropped)
        found = loss(W, P[:, :prefix] @ V[:, :prefix].T, dropped)
        assert best * (1 - 1e-6) <= found <= 1.01**2 * best + 1e-9 * loss(W, torch.zeros_like(W), dropped)


@pytest.mark.parametrize("rank", [3, 14, 35])
def test_few_distinct_rows_are_fitted_and_nothing_blows_up(on_gpu, rank):
    W, dropped = problem(rows=8)
    dropped = dropped.repeat(25, 1)
    P, V = fit_to_dropped(W, dropped, rank)
    expected = loss(W, closed_form(W, dropped, rank), dropped)
    assert loss(W, P @ V.T, dropped) <= 1.01**2 * expected + 1e-8 * loss(W, torch.zeros_like(W), dropped)
    assert float(P.norm(dim=0).max()) < 1.001
    P, V = fit_to_dropped(W, torch.zeros_like(dropped), rank)
    assert torch.equal(P @ V.T, torch.zeros_like(W))
