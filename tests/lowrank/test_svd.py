"""Truncated SVD against torch.linalg.svd."""

from __future__ import annotations

import pytest
import torch

from rsparse.lowrank import truncated_svd
from rsparse.lowrank.svd import top_singular

SHAPES = [(120, 200), (200, 120), (160, 160)]
RANKS = [1, 7, 29, 60, 110]  # up to a quarter of the smaller side by subspace iteration, above by eigenvectors


def weight(out, in_features, *, decay=0.0, dtype=torch.float32):
    """Random, with σ_k · (k+1)^−decay: 0 is the flat spectrum that is hardest for subspace iteration."""
    a = torch.randn(out, in_features, generator=torch.Generator().manual_seed(out))
    left, sigma, right = torch.linalg.svd(a, full_matrices=False)
    sigma = sigma / (1 + torch.arange(len(sigma))) ** decay
    return ((left * sigma) @ right).to(dtype)


def optimal(a, rank):
    return float(torch.linalg.svdvals(a.double())[rank:].norm())


def error(a, U, V):
    return float((a.double() - U.double() @ V.double().T).norm())


@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_within_one_percent_of_the_optimum(shape, rank, decay):
    a = weight(*shape, decay=decay)
    U, V = truncated_svd(a, rank)
    assert (U.shape, V.shape) == ((shape[0], rank), (shape[1], rank))
    best = optimal(a, rank)
    assert best * (1 - 1e-5) <= error(a, U, V) <= 1.01 * best


@pytest.mark.parametrize("rank", [5, 60])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_triplets(shape, rank):
    a = weight(*shape, decay=1.0)
    left, sigma, right = top_singular(a, rank)
    eye = torch.eye(rank)
    assert torch.allclose(left.T @ left, eye, atol=1e-4)
    assert torch.allclose(right.T @ right, eye, atol=1e-4)
    assert torch.allclose(sigma, torch.linalg.svdvals(a)[:rank], rtol=1e-3)
    assert torch.allclose(left.T @ a, sigma[:, None] * right.T, atol=1e-3 * float(sigma[0]))


def test_the_left_factor_holds_the_singular_values():
    U, V = truncated_svd(weight(120, 200), 40)
    assert torch.allclose(V.norm(dim=0), torch.ones(40), atol=1e-4)
    assert torch.allclose(U.norm(dim=0), torch.linalg.svdvals(weight(120, 200))[:40], rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_the_weight(shape):
    a = weight(*shape)
    U, V = truncated_svd(a, min(shape))
    assert error(a, U, V) < 1e-5 * float(a.norm())


def test_more_than_full_rank_is_cut():
    U, V = truncated_svd(weight(12, 20), 50)
    assert (U.shape, V.shape) == ((12, 12), (20, 12))


@pytest.mark.parametrize("rank", [2, 20, 60])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_of_lower_rank_than_asked(shape, rank):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(shape[0], 2, generator=generator) @ torch.randn(2, shape[1], generator=generator)
    U, V = truncated_svd(a, rank)
    assert error(a, U, V) < 1e-4 * float(a.norm())


@pytest.mark.parametrize("rank", [2, 60])
def test_a_zero_weight_has_finite_factors(rank):
    U, V = truncated_svd(torch.zeros(120, 200), rank)
    assert torch.equal(U @ V.T, torch.zeros(120, 200))


@pytest.mark.parametrize("rank", [5, 60])
def test_low_precision_weights_are_decomposed_in_fp32(rank):
    a = weight(120, 200, dtype=torch.bfloat16)
    U, V = truncated_svd(a, rank)
    assert U.dtype == V.dtype == torch.float32
    assert error(a, U, V) <= 1.01 * optimal(a, rank)


def test_small_singular_values_survive():
    """σ from 1 to 1e-6: squared in fp32 all below 3e-4 would be noise."""
    a = torch.diag(torch.logspace(0, -6, 40))
    _, sigma, _ = top_singular(a, 30)
    assert torch.allclose(sigma, torch.logspace(0, -6, 40)[:30], rtol=1e-4)


def test_the_same_seed_gives_the_same_factors_and_leaves_the_generator_alone():
    a = weight(120, 200)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = truncated_svd(a, 5, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(torch.equal(*pair) for pair in zip(one, truncated_svd(a, 5, seed=3), strict=True))
