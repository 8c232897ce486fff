"""How masks vary over tokens: counted against a loop, and given to random weights."""

from __future__ import annotations

import itertools

import pytest
import torch

from rsparse.benchmark.decode import mask_statistics
from rsparse.benchmark.shapes import random_model, random_windows
from rsparse.models.layout import sites
from tests.support.models import tiny_model, token_ids

KINDS = {"qkv", "o", "gate_up", "down"}


def test_measured_statistics():
    model, ids = tiny_model("llama"), token_ids(3, 20)
    found = mask_statistics.measure(model, ids, [0.5])["0.5"]
    inputs = []
    handles = [
        site.first.register_forward_pre_hook(lambda m, a: inputs.append(a[0][:, 1:].abs())) for b in sites(model) for site in b
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    assert set(found) == KINDS
    for number, kind in enumerate(("qkv", "o", "gate_up", "down")):
        expected = torch.zeros(3, dtype=torch.float64)
        for x in inputs[number::4]:
            kept = x > x.flatten().median()
            pairs = [(a, b) for row in kept for a, b in itertools.pairwise(row)]
            again = sum(int((a & b).sum()) for a, b in pairs) / sum(int(a.sum()) for a, _ in pairs)
            p = kept.flatten(0, 1).double().mean(0)
            expected += torch.tensor([kept.double().mean(-1).std(), again, (p * p).mean() / p.mean()]) / 2
        values = [found[kind][name] for name in ("std", "again", "anytime")]
        assert values == pytest.approx(expected.tolist(), abs=2e-3)


def test_recorded_statistics_say_what_they_are_of():
    found = mask_statistics.recorded()
    assert "SmolLM2-135M" in found.pop("source")
    assert set(found) == {"0.4", "0.5", "0.6", "0.7"}
    for sparsity, kinds in found.items():
        assert set(kinds) == KINDS
        for each in kinds.values():
            assert 1 - float(sparsity) < each["anytime"] <= each["again"] < 1
            assert 0 < each["std"] < 0.2


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("anytime", [0.55, 0.7])
def test_spread_gives_the_overlap(share, anytime):
    generator = torch.Generator().manual_seed(0)
    gains = torch.exp(mask_statistics.spread_for(anytime, share) * torch.randn(4000, generator=generator))
    x = gains * torch.randn(200, 4000, generator=generator)
    p = (x.abs() > x.abs().flatten()[:200000].quantile(1 - share)).double().mean(0)
    assert float((p * p).mean() / p.mean()) == pytest.approx(anytime, abs=0.015)


def test_equal_channels_need_no_spread():
    assert mask_statistics.spread_for(0.4, 0.5) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("model_type", ["tiny-llama"])
def test_random_weights_get_the_recorded_overlap(model_type):
    model = random_model(model_type, torch.device("cpu"), torch.float32)
    wanted = {kind: {"anytime": 0.7} for kind in KINDS}
    ids = random_windows(model_type, 8, 64)
    before = mask_statistics.measure(model, ids, [0.5])["0.5"]
    mask_statistics.spread_channels(model, wanted, 0.5)
    after = mask_statistics.measure(model, ids, [0.5])["0.5"]
    for kind in ("qkv", "gate_up", "down"):
        assert before[kind]["anytime"] < 0.6
        assert after[kind]["anytime"] == pytest.approx(0.7, abs=0.08)
