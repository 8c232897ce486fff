"""The specification of every backend, against loops over the formulas of design §2."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rsparse.ops import reference
from rsparse.ops.mask_rows import MaskedRows
from tests.support.tolerance import assert_close_rms, relative_rms

OUT, IN, RANK, ROWS = 20, 33, 5, 4
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def problem(dtype=torch.float32, rank=RANK):
    """x [rows, in], W [out, in], U, V, b, c, mu; mean-free columns of different size."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    c = noise(IN).float().abs() + 0.1
    W = noise(OUT, IN)
    U, V = (noise(OUT, rank) / 3, noise(IN, rank) / 3) if rank else (None, None)
    return noise(ROWS, IN), W, U, V, noise(OUT), c, noise(IN) / 2


def loop(x, W, U, V, b, c, t, mu=None, row_mask=None):
    """y in fp64, one channel at a time: kept channels through W, dropped ones through U Vᵀ."""
    y = torch.zeros(len(x), len(W), dtype=torch.float64)
    for i, row in enumerate(x if mu is None else x - mu):
        for j in range(len(row)):
            score = abs(float(row[j])) * (1.0 if c is None else float(c[j]))
            if score > t or (row_mask is not None and not row_mask[i]):
                y[i] += W[:, j].double() * float(row[j])
            elif U is not None:
                y[i] += U.double() @ V[j].double() * float(row[j])
        if b is not None:
            y[i] += b.double()
    return y


def by_gather(x, W, U, V, b, c, t, mu=None, row_mask=None, deflated=False):
    chosen = reference.select(x, c, t, mu, V, row_mask)
    return reference.gather_gemv(reference.pack(W, U, V, deflated=deflated), *chosen, b)


def by_gemm(x, W, U, V, b, c, t, row_mask=None, deflated=False):
    m = reference.keep_mask(x, c, t)
    m = m if row_mask is None else m | ~row_mask[:, None]
    rows = MaskedRows(torch.where(m, x, 0), torch.where(m, 0, x), m.sum(-1))
    return reference.masked_gemm(reference.pack(W, U, V, deflated=deflated), x, rows, b)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_equals_the_loop(dtype, rank, scaled):
    x, W, U, V, b, c, _ = problem(dtype, rank)
    c = c if scaled else None
    expected = loop(x, W, U, V, b, c, 0.6)
    for bias in (b, None):
        assert_close_rms(by_gather(x, W, U, V, bias, c, 0.6), expected - (0 if bias is not None else b.double()), dtype)
    # the threshold drops something and keeps something, or the test would say little
    assert relative_rms(expected, F.linear(x, W, b)) > 0.1
    assert reference.keep_mask(x, c, 0.6).any(-1).all()


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_gemm_equals_gather(dtype, rank, deflated):
    x, W, U, V, b, c, _ = problem(dtype, rank)
    row_mask = torch.tensor([True, False, True, True])
    for mask in (None, row_mask):
        one = by_gather(x, W, U, V, b, c, 0.6, row_mask=mask, deflated=deflated)
        assert_close_rms(by_gemm(x, W, U, V, b, c, 0.6, mask, deflated), one, dtype)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("rank", [1, RANK, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_gemm_equals_two(dtype, rank, deflated):
    """Where the buffer of kept has room for z = Vᵀdropped, padded to 8 columns."""
    x, W, U, V, b, c, _ = problem(dtype, rank)
    packed = reference.pack(W, U, V, deflated=deflated)
    m = reference.keep_mask(x, c, 0.6)
    for shape in ((ROWS,), (2, ROWS // 2)):
        joined = torch.full((*shape, IN + 8), math.nan, dtype=dtype)
        kept, dropped = (torch.where(each, x, 0).view(*shape, IN) for each in (m, ~m))
        joined[..., :IN] = kept
        rows = MaskedRows(joined[..., :IN], dropped, m.sum(-1).view(shape), joined)
        for bias in (b, None):
            two = reference.masked_gemm(packed, x.view(*shape, IN), rows._replace(kept=kept, joined=None), bias)
            one = reference.masked_gemm(packed, x.view(*shape, IN), rows, bias)
            assert one.shape == (*shape, OUT)
            assert_close_rms(one, two, dtype)


def test_masked_gemm_takes_any_leading_shape():
    x, W, U, V, b, c, _ = problem()
    flat = by_gemm(x, W, U, V, b, c, 0.6)
    assert_close_rms(by_gemm(x.view(2, 2, IN), W, U, V, b, c, 0.6).flatten(0, 1), flat, torch.float32)


@pytest.mark.parametrize("form", [by_gather, by_gemm])
@pytest.mark.parametrize("dtype", DTYPES)
def test_deflated_equals_the_papers_form(dtype, form):
    x, W, U, V, b, c, _ = problem(dtype)
    paper = form(x, W, U, V, b, c, 0.6, deflated=False)
    assert_close_rms(form(x, W, U, V, b, c, 0.6, deflated=True), paper, dtype)


def test_deflation_is_made_in_fp32_and_rounded_once():
    _, W, U, V, _, _, _ = problem(torch.bfloat16)
    R = reference.deflate(W, U, V)
    assert R.dtype == torch.bfloat16
    assert torch.equal(R, (W.float() - U.float() @ V.float().T).bfloat16())
    assert not torch.equal(R, W - U @ V.T)
    assert torch.equal(reference.pack(W, U, V, deflated=True).weight, R)
    assert reference.pack(W, U, V).weight is W


@pytest.mark.parametrize("deflated", [False, True])
def test_rank_0_is_the_dense_gemm_of_masked_x_bit_for_bit(deflated):
    x, W, _, _, b, c, _ = problem(torch.bfloat16, rank=0)
    m = reference.keep_mask(x, c, 0.6)
    assert torch.equal(by_gemm(x, W, None, None, b, c, 0.6, deflated=deflated), F.linear(x * m, W, b))


@pytest.mark.parametrize("form", [by_gather, by_gemm])
@pytest.mark.parametrize("dtype", DTYPES)
def test_minus_infinity_keeps_all_and_equals_dense_bit_for_bit(dtype, form):
    x, W, U, V, b, c, _ = problem(dtype)
    x[0, 0] = 0
    assert torch.equal(form(x, W, U, V, b, c, -math.inf), F.linear(x, W, b))


@pytest.mark.parametrize("form", [by_gather, by_gemm])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_rows_are_dense_bit_for_bit(dtype, form):
    x, W, U, V, b, c, _ = problem(dtype)
    row_mask = torch.tensor([True, False, False, True])
    y, dense = form(x, W, U, V, b, c, 0.6, row_mask=row_mask), F.linear(x, W, b)
    assert torch.equal(y[~row_mask], dense[~row_mask])
    assert_close_rms(y, loop(x, W, U, V, b, c, 0.6, row_mask=row_mask), dtype)
    assert relative_rms(y[row_mask], dense[row_mask]) > 0.1


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("form", [by_gather, by_gemm])
def test_full_rank_equals_dense_whatever_is_dropped(form, deflated):
    x, W, _, _, b, c, _ = problem()
    left, sigma, right = torch.linalg.svd(W, full_matrices=False)
    U, V = left * sigma, right.T
    for t in (0.6, math.inf):
        assert_close_rms(form(x, W, U, V, b, c, t, deflated=deflated), F.linear(x, W, b), torch.float32)


@pytest.mark.parametrize("rank", [0, RANK])
def test_everything_dropped_leaves_the_low_rank_part(rank):
    x, W, U, V, b, c, _ = problem(rank=rank)
    expected = x @ V @ U.T + b if rank else b.expand(ROWS, OUT)
    assert_close_rms(by_gather(x, W, U, V, b, c, math.inf), expected, torch.float32)


@pytest.mark.parametrize("deflated", [False, True])
def test_mu_is_subtracted_throughout(deflated):
    x, W, U, V, b, c, mu = problem()
    row_mask = torch.tensor([True, True, False, True])
    y = by_gather(x, W, U, V, b, c, 0.6, mu=mu, row_mask=row_mask, deflated=deflated)
    assert_close_rms(y, loop(x, W, U, V, b, c, 0.6, mu=mu, row_mask=row_mask), torch.float32)
    # with W·mu in the bias a row that keeps all is dense again
    whole = by_gather(x, W, U, V, b + W @ mu, c, -math.inf, mu=mu, deflated=deflated)
    assert_close_rms(whole, F.linear(x, W, b), torch.float32)


def test_selection_by_hand():
    x = torch.tensor([[0.5, -3.0, 0.0, 2.0], [4.0, 0.1, -0.2, 0.3]])
    c = torch.tensor([4.0, 0.5, 9.0, 0.25])  # scores 2, 1.5, 0, .5 and 16, .05, 1.8, .075
    V = torch.eye(4)[:, :2]
    chosen = reference.select(x, c, 1.0, V=V)
    assert chosen.counts.tolist() == [2, 2]
    assert chosen.counts.dtype == torch.int32
    assert chosen.indices.tolist() == [[0, 1, 2, 3], [0, 2, 1, 3]]  # kept ascending, then the rest
    assert chosen.values.tolist() == [[0.5, -3.0, 0.0, 0.0], [4.0, pytest.approx(-0.2), 0.0, 0.0]]
    assert torch.equal(chosen.z, x[:, :2])  # Vᵀx is over the whole input
    dense = reference.select(x, c, 1.0, row_mask=torch.tensor([False, True]))
    assert dense.counts.tolist() == [4, 2]
    assert torch.equal(dense.values[0], x[0])
    assert dense.z is None


# ---- masks, bit for bit


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_comparison_is_strict(dtype):
    x = torch.tensor([-0.75, 0.5, 0.75, 1.0, 0.0], dtype=dtype)
    assert reference.keep_mask(x, None, 0.75).tolist() == [False, False, False, True, False]
    assert reference.keep_mask(x, None, 0.0).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_threshold_between_two_values_of_the_dtype_is_not_rounded(dtype, scalar):
    step = torch.finfo(dtype).eps
    x = torch.tensor([1.0, 1.0 + step], dtype=dtype)
    # each threshold rounds to 1 or to 1 + step in the dtype, and so to the wrong mask
    for t, expected in ((1 - step / 8, [True, True]), (1 + 0.9 * step, [False, True]), (1 + 1.1 * step, [False, False])):
        threshold = t if scalar else torch.tensor(t, dtype=torch.float32)
        assert torch.tensor(t).to(dtype).item() in (1.0, 1 + step)
        assert reference.keep_mask(x, None, threshold).tolist() == expected
        assert reference.keep_mask(x, torch.ones(2), threshold).tolist() == expected
        assert reference.select(x[None], None, threshold).counts.item() == sum(expected)


def test_a_scaled_score_is_made_in_fp32():
    x = torch.tensor([1.0078125, 3.0], dtype=torch.bfloat16)
    c = torch.tensor([1.003, 1 / 3])  # products 1.01083… and 1.0000000x, which bf16 would round to 1.0078 and 1
    assert reference.keep_mask(x, c, torch.tensor(1.0105)).tolist() == [True, False]
    exact = torch.tensor(3.0) * c[1]
    assert reference.keep_mask(x, c, exact).tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_equal_the_definition_on_many_values(dtype):
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(64, IN, generator=generator) * torch.exp(torch.randn(IN, generator=generator))).to(dtype)
    c = torch.rand(IN, generator=generator) + 0.5
    for t in (0.0, 0.3, 1.0):
        scores = [[abs(torch.tensor(v)) * c[j] for j, v in enumerate(row)] for row in x.float().tolist()]
        expected = torch.tensor([[bool(score > torch.tensor(t)) for score in row] for row in scores])
        assert torch.equal(reference.keep_mask(x, c, t), expected)
        assert torch.equal(reference.select(x, c, t).counts, expected.sum(-1).int())
