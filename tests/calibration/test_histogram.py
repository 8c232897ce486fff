from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rsparse.calibration.histogram import (
    CHANNEL_BINS,
    _scattered,
    channel_edges,
    channel_histogram,
    kept_share,
    lookup_threshold,
    quantile_threshold,
    solve_threshold,
)

PROMISED = 0.002  # of sparsity
SHARES = [0.02, 0.3, 0.5, 0.7, 0.97]


def activations(dtype=torch.float32, rows=3000, channels=48):
    """Student-t with 2 degrees of freedom: heavy tails; channels differ by factors up to e^±4."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(rows, channels, generator=generator)
    chi = torch.randn(rows, channels, 2, generator=generator).square().sum(-1)
    scale = torch.exp(4 * (2 * torch.rand(channels, generator=generator) - 1))
    return (normal / (chi / 2).sqrt() * scale).to(dtype)


def scales(channels=48):
    return torch.exp(torch.randn(channels, generator=torch.Generator().manual_seed(1)))


def score(x, c):
    return x.abs().double() * (1 if c is None else c.double())


def share_above(x, c, t):
    return float((score(x, c) > t).double().mean())


def exact_threshold(x, c, share):
    values = score(x, c).flatten().sort(descending=True).values
    return float(values[round(share * len(values))])  # as many scores are above it


def test_edges_are_eighths_of_octaves():
    edges = channel_edges().double().numpy()
    expected = [2.0**octave * (1 + eighth / 8) for octave in range(-18, 14) for eighth in range(8)] + [2.0**14]
    assert len(edges) == CHANNEL_BINS + 1
    assert edges[0] == 0  # instead of 2^-18: smaller values are in the first bin
    assert np.array_equal(edges[1:], expected[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_counts_equal_a_search_in_the_edges(dtype):
    x = activations(dtype, rows=200)
    x[0, :9] = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 2.0**-18, 1.0, -1.125, 20000.0, 60000.0]).to(dtype)
    edges = channel_edges().double().numpy()
    bins = np.clip(np.searchsorted(edges, x.abs().double().numpy(), side="right") - 1, 0, CHANNEL_BINS - 1)
    expected = np.zeros((x.shape[1], CHANNEL_BINS), dtype=np.int64)
    for row in bins:
        expected[np.arange(x.shape[1]), row] += 1
    assert np.array_equal(channel_histogram(x).numpy(), expected)


def test_counts_add_up():
    x = activations()
    assert torch.equal(channel_histogram(x[:1000]) + channel_histogram(x[1000:]), channel_histogram(x))
    assert channel_histogram(x).sum(1).tolist() == [3000] * 48


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("share", SHARES)
def test_kept_share_is_that_of_the_values(share, scaled):
    x, c = activations(), scales() if scaled else None
    t = exact_threshold(x, c, share)
    assert kept_share(channel_histogram(x), c, t) == pytest.approx(share, abs=PROMISED)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("share", SHARES)
def test_a_looked_up_threshold_keeps_the_share(share, scaled):
    x, c = activations(), scales() if scaled else None
    t = lookup_threshold(channel_histogram(x), c, share)
    assert share_above(x, c, t) == pytest.approx(share, abs=PROMISED)


def test_lookup_is_the_inverse_of_kept_share():
    histogram, c = channel_histogram(activations()), scales()
    for share in SHARES:
        assert kept_share(histogram, c, lookup_threshold(histogram, c, share)) == pytest.approx(share, abs=1e-6)


def test_int32_counts_from_disk_are_as_good():
    histogram = channel_histogram(activations())
    assert lookup_threshold(histogram.int(), scales(), 0.4) == lookup_threshold(histogram, scales(), 0.4)


def test_one_scale_for_all_channels_scales_the_threshold():
    histogram = channel_histogram(activations())
    plain = lookup_threshold(histogram, None, 0.5)
    assert lookup_threshold(histogram, torch.full((48,), 3.0), 0.5) == pytest.approx(3 * plain, rel=1e-5)


def test_a_channel_with_no_scale_is_never_kept():
    x, c = activations(), torch.ones(48)
    c[:24] = 0
    t = lookup_threshold(channel_histogram(x), c, 0.25)
    assert share_above(x, c, t) == pytest.approx(0.25, abs=PROMISED)


def test_the_ends():
    histogram = channel_histogram(activations())
    assert kept_share(histogram, None, 0.0) == 1
    assert kept_share(histogram, None, 1e9) == 0
    assert lookup_threshold(histogram, None, 1.0) < 1e-9
    assert share_above(activations(), None, lookup_threshold(histogram, None, 0.0)) < PROMISED


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("share", [0.001, *SHARES])
def test_a_solved_threshold_is_the_quantile(share, scaled):
    x, c = activations(), scales() if scaled else None
    t = solve_threshold(x, c, share)
    assert share_above(x, c, t) == pytest.approx(share, abs=1e-4)
    assert t == pytest.approx(exact_threshold(x, c, share), rel=1 / 256)
    assert t == pytest.approx(float(np.quantile(score(x, c).numpy(), 1 - share)), rel=1 / 256)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("share", SHARES)
def test_a_solved_threshold_on_values_with_ties(share, scaled, dtype):
    x, c = activations(dtype), scales() if scaled else None
    assert share_above(x, c, solve_threshold(x, c, share)) == pytest.approx(share, abs=0.003)


def test_chunks_do_not_matter():
    x, c = activations(), scales()
    assert solve_threshold(x, c, 0.4, chunk=7) == solve_threshold(x, c, 0.4, chunk=100_000)


def test_solving_for_all_or_nothing():
    x = activations()
    assert share_above(x, None, solve_threshold(x, None, 1.0)) > 0.9999
    assert share_above(x, None, solve_threshold(x, None, 0.0)) == 0


def test_zeros_cannot_be_kept():
    """After a ReLU most inputs are zero: what is kept is then all that is not."""
    x = activations().relu()
    nonzero = float((x > 0).double().mean())
    t = solve_threshold(x, None, 0.9)
    assert 0 <= t < math.inf
    assert share_above(x, None, t) == pytest.approx(nonzero, abs=1e-4)
    half = solve_threshold(x, None, nonzero / 2)
    assert share_above(x, None, half) == pytest.approx(nonzero / 2, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("share", SHARES)
def test_a_quantile_threshold_keeps_the_share(share, factor, scaled, dtype):
    x, c = activations(dtype) * factor, scales() if scaled else None
    t = quantile_threshold(x, c, share)
    assert t.dtype == torch.float32
    assert t.shape == ()
    assert share_above(x, c, t) == pytest.approx(share, abs=0.003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [False, True])
def test_quantile_thresholds_lean_to_neither_side(scaled, dtype):
    x, c = activations(dtype), scales() if scaled else None
    shares = [step / 40 for step in range(1, 40)]
    off = [share_above(x, c, quantile_threshold(x, c, share)) - share for share in shares]
    assert abs(sum(off) / len(off)) < 3e-4


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("share", SHARES)
def test_a_quantile_threshold_masks_like_a_solved_one(share, scaled):
    x, c = activations(), scales() if scaled else None
    quick, solved = (score(x, c) > float(solve(x, c, share)) for solve in (quantile_threshold, solve_threshold))
    assert (quick != solved).double().mean() < 0.002
    assert not ((quick & ~solved).any() and (solved & ~quick).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
def test_quantile_thresholds_of_all_and_nothing(factor, scaled, dtype):
    x, c = activations(dtype) * factor, scales() if scaled else None
    assert share_above(x, c, quantile_threshold(x, c, 1.0)) == 1
    for nothing in (0.0, -1e-10):  # a budget that low-rank takes whole, but for rounding
        t = quantile_threshold(x, c, nothing)
        assert t.isfinite()
        assert share_above(x, c, t) == 0


def test_a_quantile_threshold_cannot_keep_zeros():
    x = activations().relu()
    t = quantile_threshold(x, None, 0.9)
    assert t >= 0
    assert share_above(x, None, t) == pytest.approx(float((x > 0).double().mean()), abs=1e-4)


def test_a_quantile_threshold_keeps_or_drops_equal_values_whichever_is_nearer():
    """1/2 octave of bf16: 64 values, each of 1/64 of the rows."""
    x = (1 + torch.arange(64) / 128).repeat(100, 1).bfloat16()
    for share in (0.01, 0.3, 0.5, 0.507, 0.51, 0.99):
        assert share_above(x, None, quantile_threshold(x, None, share)) == round(64 * share) / 64


def test_the_gpus_way_to_count_is_bincount():
    bits = (activations().view(torch.int32).abs() >> 15).flatten()
    bits[:3] = torch.tensor([0, (1 << 16) - 1, 7], dtype=torch.int32)
    assert torch.equal(_scattered(bits), torch.bincount(bits, minlength=1 << 16))
    assert _scattered(bits[:0]).sum() == 0
