"""The fit to dropped inputs against its closed form: P Pᵀ W, P the top eigenvectors of W C Wᵀ."""

from __future__ import annotations

import pytest
import torch

from rsparse.lowrank import fit_to_dropped, truncated_svd

OUT, IN = 60, 80


def problem(rows=300, out=OUT, in_features=IN, seed=0):
    """W and rows of which the largest half of the channels are zero, with channels of different size."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(out, in_features, generator=generator)
    x = torch.randn(rows, in_features, generator=generator) * torch.exp(torch.randn(in_features, generator=generator))
    cut = x.abs().median(dim=1, keepdim=True).values
    return W, torch.where(x.abs() > cut, 0, x)


def closed_form(W, dropped, rank):
    C = dropped.double().T @ dropped.double() / len(dropped)
    _, vectors = torch.linalg.eigh(W.double() @ C @ W.double().T)
    P = vectors[:, -rank:]
    return P @ P.T @ W.double()


def loss(W, M, dropped):
    """‖(W − M) C^½‖² up to the number of rows."""
    return float(((W.double() - M.double()) @ dropped.double().T).square().sum())


def fitted(W, dropped, rank):
    U, V = fit_to_dropped(W, dropped, rank)
    assert (U.shape, V.shape) == ((W.shape[0], rank), (W.shape[1], rank))
    return U @ V.T


@pytest.mark.parametrize("shape", [(60, 80), (80, 60)])
@pytest.mark.parametrize("rows", [40, 300])  # fewer and more rows than outputs
@pytest.mark.parametrize("rank", [20, 30])  # from a quarter of the smaller side on by eigenvectors: exact
def test_equals_the_closed_form(shape, rows, rank):
    W, dropped = problem(rows, *shape)
    expected = closed_form(W, dropped, rank)
    assert torch.allclose(fitted(W, dropped, rank).double(), expected, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(60, 80), (80, 60)])
@pytest.mark.parametrize("rank", [1, 5, 12])  # by subspace iteration: near
def test_small_ranks_are_within_one_percent_of_the_optimum(shape, rank):
    W, dropped = problem(300, *shape)
    best = loss(W, closed_form(W, dropped, rank), dropped)
    assert best * (1 - 1e-6) <= loss(W, fitted(W, dropped, rank), dropped) <= 1.01**2 * best


@pytest.mark.parametrize("rank", [1, 5, 16, 30])
def test_beats_plain_svd_where_it_matters_and_loses_where_it_does_not(rank):
    W, dropped = problem()
    U, V = truncated_svd(W, rank)
    M = fitted(W, dropped, rank)
    assert loss(W, M, dropped) < 0.99 * loss(W, U @ V.T, dropped)
    assert (W - M).norm() > (W - U @ V.T).norm()


def test_no_other_matrix_of_that_rank_is_better():
    W, dropped = problem()
    U, V = fit_to_dropped(W, dropped, 20)
    best = loss(W, U @ V.T, dropped)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        step = 1e-3 * torch.randn(OUT, 20, generator=generator), 1e-3 * torch.randn(IN, 20, generator=generator)
        assert loss(W, (U + step[0]) @ (V + step[1]).T, dropped) > best


def test_a_prefix_is_the_fit_of_a_lower_rank():
    W, dropped = problem()
    U, V = fit_to_dropped(W, dropped, 40)
    for rank in (16, 25, 39):
        assert torch.allclose(U[:, :rank] @ V[:, :rank].T, fitted(W, dropped, rank), atol=1e-4)
    for rank in (3, 10):
        best = loss(W, closed_form(W, dropped, rank), dropped)
        assert loss(W, U[:, :rank] @ V[:, :rank].T, dropped) <= 1.01 * best


def test_full_rank_is_the_weight():
    W, dropped = problem()
    assert torch.allclose(fitted(W, dropped, OUT), W, atol=1e-4)


@pytest.mark.parametrize("rows", [40, 200])
@pytest.mark.parametrize("rank", [3, 8, 14, 35])
def test_singular_covariances_are_welcome(rank, rows):
    """Eight distinct rows: from rank 8 on nothing is left to fit."""
    W, dropped = problem(rows=8)
    dropped = dropped.repeat(rows // 8, 1)
    P, V = fit_to_dropped(W, dropped, rank)
    expected = loss(W, closed_form(W, dropped, rank), dropped)
    assert loss(W, P @ V.T, dropped) <= 1.01**2 * expected + 1e-8 * loss(W, torch.zeros_like(W), dropped)
    # what is left over must not blow up inputs that the rows did not have
    assert float(P.norm(dim=0).max()) < 1.001


@pytest.mark.parametrize("rank", [3, 20])
def test_a_channel_that_is_never_dropped_costs_nothing(rank):
    W, dropped = problem()
    dropped[:, :40] = 0
    best = loss(W, closed_form(W, dropped, rank), dropped)
    assert loss(W, fitted(W, dropped, rank), dropped) <= 1.01**2 * best


def test_fewer_rows_than_the_rank_are_fitted_exactly():
    W, dropped = problem(rows=6)
    U, V = fit_to_dropped(W, dropped, 10)
    assert U.shape[1] == V.shape[1] == 6
    assert loss(W, U @ V.T, dropped) < 1e-8 * loss(W, torch.zeros_like(W), dropped)


@pytest.mark.parametrize("rank", [3, 20])
def test_nothing_dropped_gives_finite_factors(rank):
    W, dropped = problem()
    U, V = fit_to_dropped(W, torch.zeros_like(dropped), rank)
    assert bool(U.isfinite().all())
    assert bool(V.isfinite().all())


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_the_scale_of_activations_does_not_matter(scale):
    W, dropped = problem()
    assert torch.allclose(fitted(W, dropped * scale, 20), fitted(W, dropped, 20), atol=1e-3)


def test_low_precision_rows():
    W, dropped = problem()
    best = loss(W, closed_form(W, dropped.bfloat16(), 20), dropped.bfloat16())
    assert loss(W, fitted(W.bfloat16(), dropped.bfloat16(), 20), dropped.bfloat16()) <= 1.02 * best
