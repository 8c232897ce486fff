"""Importance of input channel × singular component."""

from __future__ import annotations

import json

import matplotlib.image
import pytest
import torch

from rsparse.analysis.importance import (
    Corners,
    Source,
    components,
    corner_mass,
    importance,
    pairs_of,
    read_corners,
    sorted_map,
    summary,
    top_set,
    weight_importance,
)
from rsparse.analysis.importance_views import lines, plot
from rsparse.errors import RSparseError
from rsparse.models.layout import sites
from tests.support.models import tiny_model, token_ids

A1, A4, B1, B4 = Source("a.txt", 1), Source("a.txt", 4), Source("b.txt", 1), Source("b.txt", 4)


def test_components_are_singular_values_times_right_vectors():
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    _, sigma, right = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(components(weight), right.T.abs() * sigma, atol=1e-4)


def test_a_map_by_hand():
    parts = components(torch.diag(torch.tensor([2.0, 1.0])))
    assert torch.allclose(parts, torch.tensor([[2.0, 0], [0, 1]]), atol=1e-6)
    ordered = sorted_map(torch.tensor([1.0, 3.0]), parts)  # I = [[2, 0], [0, 3]]
    assert torch.allclose(ordered, torch.tensor([[3.0, 0], [0, 2]]), atol=1e-5)
    corner, joint = corner_mass(ordered, 0.5)
    assert corner == pytest.approx(0.6)
    assert joint == pytest.approx(0.6 / (0.6 * 0.6))


def test_a_flat_map():
    assert corner_mass(torch.ones(8, 4), 0.25) == (pytest.approx(1 / 16), pytest.approx(1))
    assert corner_mass(torch.zeros(4, 4), 0.25) == (0, 0)


def test_top_sets_overlap_as_inputs_do():
    assert top_set(torch.arange(20.0)).nonzero().flatten().tolist() == [18, 19]
    weight = torch.eye(20)
    ahead, behind = torch.ones(20), torch.ones(20)
    ahead[:10], behind[10:] = 2, 2  # 40 of 400 cells are on top: ten of them are 2, ten 1, the rest 0
    found = weight_importance(weight, [ahead, ahead, behind], [(0, 1), (0, 2)])
    assert found.overlaps[(0, 1)] == 1
    assert found.overlaps[(0, 2)] >= 0.5  # the diagonal at least
    spread = torch.full((20, 20), 1.0) + torch.eye(20)
    assert weight_importance(spread, [ahead, behind], [(0, 1)]).overlaps[(0, 1)] < 1


def test_pairs():
    assert pairs_of([A4, A1, B4, B1]) == {"texts": [(0, 2)], "samples": [(1, 0), (3, 2)]}
    assert pairs_of([A4]) == {"texts": [], "samples": []}


@torch.no_grad()
def test_a_model_over_texts_and_samples():
    model = tiny_model("llama")
    texts = {"a.txt": token_ids(4, 16, seed=1), "b.txt": token_ids(4, 16, seed=2)}
    sources = [A4, A1, B4, B1]
    found = importance(model, texts, sources)
    name = "model.layers.1.mlp.down_proj"
    inputs = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    for ids in texts.values():
        model(ids)
    hook.remove()
    means = [inputs[text][:count, 1:].abs().mean((0, 1)) for text, count in ((0, 4), (0, 1), (1, 4), (1, 1))]
    expected = weight_importance(model.get_submodule(name).weight, means, [(0, 2), (1, 0), (3, 2)])
    for mine, theirs in zip(found[name].corners, expected.corners, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert found[name].overlaps == pytest.approx(expected.overlaps, abs=0.01)
    assert found[name].overlaps[(0, 2)] < 1
    assert torch.allclose(found[name].picture, expected.picture, rtol=1e-3, atol=1e-6)
    assert list(found) == [linear for block in sites(model) for site in block for linear in site.linears]


def made(k, up, overlap):
    """Two weights whose corners are k and up, with one pair of sources."""
    base = weight_importance(torch.eye(10), [torch.ones(10)] * 2, [(0, 1)])
    result = {}
    for kind, corner in (("self_attn.k_proj", k), ("mlp.up_proj", up)):
        shares = dict.fromkeys(base.corners[0], corner)
        values = vars(base) | {"corners": [shares, shares], "overlaps": {(0, 1): overlap, (1, 0): overlap}}
        result[f"model.layers.0.{kind}"] = type(base)(**values)
    return result


def test_verdicts():
    two = [A4, B4]
    good, poor = lines(made(0.5, 0.2, 0.9), two), lines(made(0.1, 0.2, 0.7), two)
    assert "50% of k_proj's" in good[0]
    assert "holds here (50% against 20%)" in good[1]
    assert "holds here (least overlap of top tenths 90.0%, a / b" in good[2]
    assert "does not hold" in poor[1]
    assert "does not hold" in poor[2]
    assert "least overlap of top tenths 79.6%, a / b; 80% asked" in lines(made(0.5, 0.2, 0.796), two)[2]
    assert "a: 1 / 4" in lines(made(0.5, 0.2, 0.9), [A4, A1])[2]
    told = summary(made(0.5, 0.2, 0.9), two)
    assert told["corner_mass"]["0.25"] == {"k_proj": 0.5, "up_proj": 0.2}
    assert told["overlap_texts"] == [{"pair": [0, 1], "mean": pytest.approx(0.9)}]


def test_corners_of_a_record(tmp_path):
    config = {"weights_sha": "abc", "data": ["a.txt", "b.txt"], "samples": [1, 4], "seq_len": 24}
    for name, each in (("a.json", {"corners": [{"0.25": 0.3}, {"0.25": 0.9}]}), ("b.json", {"rank90": 0.3})):
        (tmp_path / name).write_text(json.dumps({"config": config, "metrics": {"by_weight": {"a.k": each}}}))
    assert read_corners(tmp_path / "a.json") == Corners("abc", "a.txt, 4 × 24 tokens", {"a.k": 0.3})
    for name in ("b.json", "none.json"):
        with pytest.raises(RSparseError, match=f"{name} is not a record of `rsparse analyze importance`"):
            read_corners(tmp_path / name)


def test_picture(tmp_path):
    sources = [A4, A1]
    found = importance(tiny_model("llama"), {"a.txt": token_ids(4, 16)}, sources)
    plot(found, sources, 1, "title", tmp_path / "a.png")
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.05
