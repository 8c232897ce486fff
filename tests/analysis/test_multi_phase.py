"""The multi-phase ReLU study."""

from __future__ import annotations

import matplotlib.image
import pytest
import torch

from rsparse.analysis.multi_phase import DROPPED, LayerBias, bias_terms, phase_point, phased
from rsparse.analysis.multi_phase_views import by_layer, lines, plot, summary
from rsparse.evaluation.perplexity import evaluate
from rsparse.gated.rules.multi_phase import multi_phase_relu, phase_of
from tests.support.models import tiny_model, token_ids


@pytest.fixture(scope="module")
def study():
    """(model, ids, H of block 1 without the first token, layers)"""
    model, ids = tiny_model("llama"), token_ids(4, 20)
    inputs = []
    hook = model.get_submodule("model.layers.1.mlp.down_proj").register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    with torch.no_grad():
        model(ids)
    hook.remove()
    return model, ids, inputs[0][:, 1:].flatten(0, 1), bias_terms(model, ids, [0.3, 0.7], 0.7, [1, 3], 1)


def test_t0_is_the_quantile_of_the_asked_share(study):
    _, _, rows, layers = study
    for level in (0.3, 0.7):
        assert float((rows < layers[1].t0[level]).float().mean()) == pytest.approx(level, abs=1e-3)
    assert layers[1].t0[0.3] < 0 < layers[1].t0[0.7]
    assert layers[1].negative == pytest.approx(float((rows < 0).float().mean()))


@torch.no_grad()
def test_spectra_are_those_of_the_terms(study):
    model, _, rows, layers = study
    weight, t0 = model.get_submodule("model.layers.1.mlp.down_proj").weight, layers[1].t0[0.7]
    number, constants = phase_of(rows, t0, 3)
    terms = torch.cat([constants[:, i : i + 1] * ((number == i).float() @ weight.T) for i in range(3)])
    assert torch.allclose(layers[1].spectra[3], torch.linalg.svdvals(terms.double()).square(), rtol=1e-3, atol=1e-3)
    # all terms of a token add up to what W makes of its changed entries
    changed = torch.where(number < 0, 0, multi_phase_relu(rows, t0, 3))
    assert torch.allclose(terms.view(3, len(rows), -1).sum(0), changed @ weight.T, atol=1e-4)
    dropped = torch.where(rows < t0, rows, 0) @ weight.T
    assert torch.allclose(layers[1].spectra[DROPPED], torch.linalg.svdvals(dropped.double()).square(), rtol=1e-3, atol=1e-3)


def test_rank90_by_hand():
    layer = LayerBias({0.5: 0.0}, 0.5, {1: torch.tensor([8.0, 1.0, 1.0, 0.0]), 2: torch.zeros(4)})
    assert layer.rank90(1) == 0.5
    assert layer.held(1, 1) == pytest.approx(0.8)
    assert layer.rank90(2) == 0


def test_perplexity_of_many_phases_is_dense_and_of_few_is_not(study):
    model, ids, _, layers = study
    dense = evaluate(model, ids).perplexity
    many, one = (phase_point(model, ids, [layer.t0[0.7] for layer in layers], count, 1) for count in (1 << 16, 1))
    assert many["perplexity"] == pytest.approx(dense, rel=1e-3)
    assert one["perplexity"] != pytest.approx(dense, rel=1e-2)
    assert many["achieved_sparsity"] == pytest.approx(0.7, abs=0.01)
    assert evaluate(model, ids).perplexity == dense


@torch.no_grad()
def test_sinks_stay_and_the_others_change(study):
    model, ids, _, layers = study
    seen = []
    with phased(model, [layer.t0[0.7] for layer in layers], 1, 2):
        hook = model.get_submodule("model.layers.0.mlp.down_proj").register_forward_pre_hook(
            lambda m, args: seen.append(args[0])
        )
        model(ids)
        hook.remove()
    hook = model.get_submodule("model.layers.0.mlp.down_proj").register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(ids)
    hook.remove()
    assert torch.equal(seen[0][:, :2], seen[1][:, :2])
    assert not torch.equal(seen[0][:, 2], seen[1][:, 2])


def grid_of(**perplexities):
    """level (as s50) → perplexities at 1 and 2 phases."""
    return {int(level[1:]) / 100: {n + 1: {"perplexity": p} for n, p in enumerate(row)} for level, row in perplexities.items()}


def test_verdicts_and_picture(tmp_path):
    low = LayerBias({0.5: 0.1}, 0.5, {0: torch.ones(8), 1: torch.tensor([9.0] + [0.1] * 7), 2: torch.tensor([9.0] + [0.1] * 7)})
    flat = LayerBias({0.5: 0.1}, 0.5, {count: torch.ones(8) for count in (0, 1, 2)})
    good, poor = grid_of(s50=[30.0, 10.5]), grid_of(s50=[30.0, 20.0])
    told = summary(good, 10.0, [low])
    assert told["fewest_phases_near_dense"] == {"0.5": 2}
    assert told["rank90"] == {"dropped": 1, "1": 0.125, "2": 0.125}
    assert summary(poor, 10.0, [low])["fewest_phases_near_dense"] == {"0.5": None}
    assert by_layer([low])[0]["t0"] == {"0.5": 0.1}
    few, rank = lines(good, 10.0, [low], 0.5)[1:]
    assert "holds here" in few
    assert "holds here (90 % of their energy takes 12.5%" in rank
    few, rank = lines(poor, 10.0, [flat], 0.5)[1:]
    assert "does not hold" in few
    assert "does not hold" in rank
    plot(good, 10.0, [low, flat], 0.5, "title", tmp_path / "a.png")
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.05
