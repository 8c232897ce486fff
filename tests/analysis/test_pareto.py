"""Quality over bytes: what a panel draws."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest

from rsparse.analysis.pareto import panel


def record(preset, level, perplexity):
    config = {"model": "tiny.gguf", "data": "a.txt", "preset": preset, "sparsity": level, "token_policy": "all"}
    metrics = {"perplexity": perplexity, "bytes_per_token": 1e6 * (1 - level), "dense_bytes_per_token": 1e6}
    return {"config": config, "metrics": metrics}


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def test_twenty_methods_have_twenty_colours(axis):
    """Ten were not enough: `best` and TEAL's ablation were one colour and one dash."""
    presets = [f"method-{number:02}" for number in range(20)]
    records = [record(preset, level, 10 + level) for preset in presets for level in (0.4, 0.5)]
    panel(axis, [record("dense", 0.0, 10.0), *records], presets)
    colours = {line.get_label(): tuple(line.get_color()) for line in axis.lines if line.get_label() in presets}
    assert list(colours) == presets
    assert len(set(colours.values())) == 20
