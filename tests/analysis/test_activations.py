"""Where the mass of the activations is."""

from __future__ import annotations

import math

import matplotlib.image
import pytest
import torch

from rsparse.analysis.activations import NORMAL_SMALL_HALF, activations, activations_of, bin_middles, lines, plot, summary
from rsparse.calibration.histogram import channel_histogram
from tests.support.recipes import calibration_of


def counts_of(*channels):
    """Counts [in, bins] from (bin, how many) by channel."""
    counts = torch.zeros(len(channels), 256, dtype=torch.int32)
    for row, entries in enumerate(channels):
        for place, count in entries:
            counts[row, place] = count
    return counts


def test_channels_and_halves_by_hand():
    m = bin_middles()
    # channel 0 has 4 entries of m[200], the other nine 4 of m[192], the same bin an octave lower
    found = activations_of(counts_of([(200, 4)], *[[(192, 4)]] * 9))
    assert float(m[200] / m[192]) == 2
    assert found.top == pytest.approx({"0.01": 2 / 11, "0.1": 2 / 11, "0.5": 6 / 11})
    assert found.small_half == pytest.approx(5 / 11)
    assert sum(found.histogram) == pytest.approx(1)
    assert found.histogram[200] == pytest.approx(0.1)


def test_the_median_lies_inside_its_bin():
    found = activations_of(counts_of([(150, 1), (160, 2), (170, 1)]))
    assert found.median == pytest.approx(float(bin_middles()[160]))
    assert found.small_half == pytest.approx(
        float(
            (bin_middles()[150] + bin_middles()[160]) / (bin_middles() @ counts_of([(150, 1), (160, 2), (170, 1)])[0].double())
        )
    )


def test_a_normal_variable():
    assert pytest.approx(1 - math.exp(-(0.67449**2) / 2), abs=1e-4) == NORMAL_SMALL_HALF
    x = torch.randn(4000, 50, generator=torch.Generator().manual_seed(0))
    found = activations_of(channel_histogram(x))
    assert found.small_half == pytest.approx(NORMAL_SMALL_HALF, abs=0.004)
    assert found.median == pytest.approx(0.6745, rel=0.02)
    assert found.top["0.5"] == pytest.approx(0.5, abs=0.02)


def test_no_activations_at_all():
    assert activations_of(counts_of([(0, 4)], [(0, 4)])).small_half == pytest.approx(0.5)


def test_a_calibrations_sites_in_order_and_the_verdict():
    calibration = calibration_of("llama")
    found = activations(calibration)
    assert list(found) == list(calibration.meta.sites)
    name = "model.layers.1.gate_up"
    assert found[name] == activations_of(calibration.histogram(1, name))
    told = summary(found)
    assert list(told["small_half"]) == ["qkv", "o", "gate_up", "down"]
    assert told["inputs"] == 8
    assert told["heavier_than_normal"] == sum(each.small_half < NORMAL_SMALL_HALF for each in found.values())
    flat = activations_of(counts_of([(200, 10)]))
    assert "does not hold here (at 0 of 1 inputs)" in lines({"model.layers.0.o": flat})[1]
    heavy = activations_of(counts_of([(100, 10), (200, 5)]))
    assert "holds here (at 1 of 1 inputs)" in lines({"model.layers.0.o": heavy})[1]


def test_picture(tmp_path):
    found = activations(calibration_of("llama"))
    plot(found, "title", tmp_path / "a.png")
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.05
