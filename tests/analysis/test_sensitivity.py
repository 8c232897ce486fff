"""One unit sparse at a time."""

from __future__ import annotations

import matplotlib.image
import pytest
import torch

from rsparse.analysis.points import Points
from rsparse.analysis.sensitivity import SensitivitySettings, lines, plot, sensitivity, summary, unit_sizes
from tests.support.models import tiny_model, token_ids

Q, K, V = (f"model.layers.1.self_attn.{name}_proj" for name in "qkv")
DOWN = "model.layers.0.mlp.down_proj"
LEVEL = 0.6


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", dtype=torch.float64)


@pytest.fixture(scope="module")
def ids():
    return token_ids(3, 20)


@torch.no_grad()
def expected(model, ids, names, *, column_norm=False):
    """KL by whole forward passes and full logits, with the lowest LEVEL of the scores after the first token at zero."""
    dense = model(ids, use_cache=False).logits.log_softmax(-1)
    weight = torch.cat([model.get_submodule(name).weight for name in names])
    hooks = []
    for name in names:

        def hook(module, args):
            x = args[0].clone()
            score = x.abs() * (weight.norm(dim=0) if column_norm else 1)
            cut = score[:, 1:].flatten().kthvalue(round(LEVEL * score[:, 1:].numel())).values
            x[:, 1:][score[:, 1:] <= cut] = 0
            return (x,)

        hooks.append(model.get_submodule(name).register_forward_pre_hook(hook))
    sparse = model(ids, use_cache=False).logits.log_softmax(-1)
    for each in hooks:
        each.remove()
    return float((dense.exp() * (dense - sparse)).sum(-1)[:, :-1].mean())


def test_kl_of_a_linear_is_that_of_whole_passes(model, ids, tmp_path):
    kl = sensitivity(model, ids, SensitivitySettings((0.3, LEVEL)), Points(tmp_path, {}))
    assert list(kl) == ["0.3", "0.6"]
    assert len(kl["0.6"]) == 14
    for name in (Q, V, DOWN):
        assert kl["0.6"][name] == pytest.approx(expected(model, ids, [name]), rel=1e-2)
        assert kl["0.3"][name] < kl["0.6"][name]


def test_a_group_shares_its_mask_and_its_scores(model, ids, tmp_path):
    settings = SensitivitySettings((LEVEL,), "group", "column_norm")
    kl = sensitivity(model, ids, settings, Points(tmp_path, {}))["0.6"]
    assert list(kl)[4:] == [f"model.layers.1.{site}" for site in ("qkv", "o", "gate_up", "down")]
    assert kl["model.layers.1.qkv"] == pytest.approx(expected(model, ids, [Q, K, V], column_norm=True), rel=1e-2)


def test_units_that_have_their_point_are_not_measured(model, ids, tmp_path):
    points = Points(tmp_path, {})
    points.get(Q, lambda: {"0.6": 123.0})
    first = sensitivity(model, ids, SensitivitySettings((LEVEL,)), points)
    assert first["0.6"][Q] == 123.0
    assert 0 < first["0.6"][K] < 100
    assert sensitivity(model, ids, SensitivitySettings((LEVEL,)), Points(tmp_path, {})) == first


def test_the_model_is_as_it_was(model, ids, tmp_path):
    before = model(ids).logits
    sensitivity(model, ids, SensitivitySettings((LEVEL,)), Points(tmp_path, {}))
    assert torch.equal(model(ids).logits, before)


def named(q, up):
    values = {f"model.layers.{block}.self_attn.q_proj": each for block, each in enumerate(q)}
    return values | {f"model.layers.{block}.mlp.up_proj": each for block, each in enumerate(up)}


def test_summary_and_verdict():
    kl, sizes = {"0.25": named([1.0, 3.0], [4.0, 4.0])}, named([100, 100], [400, 400])
    found = summary(kl, sizes)["0.25"]
    assert found["by_kind"] == {"q_proj": 2.0, "up_proj": 4.0}
    # a quarter of 10 % of all weights is 2.5 %, of 40 % is 10 %
    assert found["by_kind_for_a_percent"] == pytest.approx({"q_proj": 0.8, "up_proj": 0.4})
    assert found["worst"][0].endswith("up_proj")
    assert found["sum"] == 12.0
    assert found["spread"] == pytest.approx(4.0 / 1.6)
    assert "hardly differ" in lines(kl, sizes)[1]
    assert "units differ" in lines({"0.25": named([0.1, 3.0], [4.0, 4.0])}, sizes)[1]
    assert "q_proj costs most (0.8000)" in lines(kl, sizes)[0]


def test_unit_sizes(model):
    assert unit_sizes(model, "group")["model.layers.0.qkv"] == (48 + 24 + 24) * 48
    assert sum(unit_sizes(model, "group").values()) == sum(unit_sizes(model, "linear").values())


def test_picture(tmp_path):
    for name, up in (("a", 4.0), ("b", 4.0), ("c", 0.5)):
        plot({"0.5": named([1.0, 3.0], [up, 4.0]), "0.7": named([2.0, 3.0], [4.0, 4.0])}, "title", tmp_path / f"{name}.png")
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0.05
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c
