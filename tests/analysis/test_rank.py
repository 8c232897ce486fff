"""The intrinsic rank of weights."""

from __future__ import annotations

import math
from dataclasses import replace

import matplotlib.image
import pytest
import torch

from rsparse.analysis.rank import lines, plot, rank_correlation, rank_of, ranks, rho_of, singular_values, summary
from rsparse.recipe import Recipe, UnitRecipe
from tests.support.models import tiny_model


def test_singular_values_are_those_of_an_svd():
    for shape in ((7, 12), (12, 7)):
        weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(singular_values(weight), torch.linalg.svdvals(weight), atol=1e-10)


def test_a_weight_by_hand():
    found = rank_of(torch.tensor([[3.0, 0, 0], [0, 1.0, 0]]))  # σ = 3, 1
    assert found.rank90 == 0.5  # 9 of 10 in the first of two
    assert found.stable_rank == pytest.approx(10 / 9)
    assert found.effective_rank == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)) / 2)
    assert (found.curve[0], found.curve[-1]) == (0, pytest.approx(1))


def test_energy_by_bytes():
    found = rank_of(torch.eye(20))  # a rank's factors take 40 of 400 numbers
    assert found.energy_at_bytes == pytest.approx({"0.05": 0, "0.1": 0.05, "0.25": 0.1, "0.5": 0.25})
    assert found.rank90 == 0.9
    assert found.effective_rank == pytest.approx(1)


def test_a_weight_of_zeros():
    found = rank_of(torch.zeros(3, 4))
    assert (found.rank90, found.stable_rank, set(found.curve)) == (0, 0, {0})


def test_a_models_weights_in_order():
    model = tiny_model("gemma3_text")
    found = ranks(model)
    assert len(found) == 21
    name = "model.layers.2.mlp.up_proj"
    assert found[name] == rank_of(model.get_submodule(name).weight.detach())


def of(**rank90):
    """rank90 by kind, a list over blocks."""
    base = rank_of(torch.eye(4))
    return {
        f"model.layers.{block}.x.{kind}": replace(base, rank90=value)
        for kind, values in rank90.items()
        for block, value in enumerate(values)
    }


def test_k_against_up():
    found = of(k_proj=[0.2, 0.5, 0.3], up_proj=[0.4, 0.4, 0.4])
    told = summary(found, None)
    assert (told["blocks_with_k_below_up"], told["blocks"]) == (2, 3)
    assert told["rank90"] == pytest.approx({"k_proj": 1 / 3, "up_proj": 0.4})
    assert "holds here (33% against 40%, 2 of 3 blocks)" in lines(found, None)[1]
    assert "does not hold" in lines(of(k_proj=[0.5, 0.5], up_proj=[0.4, 0.4]), None)[1]


def test_rank_correlation():
    names = "abcd"
    rising = dict(zip(names, [1.0, 2.0, 3.0, 9.0], strict=True))
    assert rank_correlation(rising, dict(zip(names, [0.1, 0.2, 0.3, 0.4], strict=True))) == pytest.approx(1)
    assert rank_correlation(rising, dict(zip(names, [4.0, 3.0, 2.0, 1.0], strict=True))) == pytest.approx(-1)
    # places 0 1 2 3 and 0.5 0.5 2 3
    assert rank_correlation(rising, dict(zip(names, [0, 0, 1, 2], strict=True))) == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert rank_correlation(rising, dict.fromkeys(names, 1.0)) is None


def test_rho_is_that_of_the_linears_unit():
    linears = ("model.layers.0.x.k_proj", "model.layers.0.x.up_proj")
    recipe = Recipe("llama", {"model.layers.0.g": UnitRecipe(linears, (4, 4), 8, 0.5, 0.75, (0,))}, grouping="group")
    assert rho_of(recipe) == dict.fromkeys(linears, 0.75)
    assert "does not vary" in lines(of(k_proj=[0.2], up_proj=[0.4]), rho_of(recipe))[2]
    assert "+1.00" in lines(of(k_proj=[0.2], up_proj=[0.4]), dict(zip(linears, [0.5, 1.0], strict=True)))[2]


def test_importance_against_rank():
    found = of(k_proj=[0.2, 0.3, 0.1, 0.4])
    corners = dict(zip(found, [0.3, 0.1, 0.4, 0.2], strict=True))  # places 1 2 0 3 against 2 0 3 1
    assert summary(found, None, corners)["importance_rank_correlation"] == pytest.approx(-0.8)
    assert lines(found, None, corners)[-1] == (
        "claim: importance is concentrated where the rank is low: holds here (rank correlation of the mass in the corner with "
        "it -0.80; -0.5 or below asked)"
    )
    rising = {name: each.rank90 for name, each in found.items()}
    assert "low: does not hold here" in lines(found, None, rising)[-1]
    assert "low: cannot be told here" in lines(found, None, dict.fromkeys(found, 0.1))[-1]
    assert "importance_rank_correlation" not in summary(found, None)


def test_picture(tmp_path):
    found = of(k_proj=[0.2, 0.5], up_proj=[0.4, 0.4])
    half = dict.fromkeys(found, 0.5)
    plot(found, None, "title", tmp_path / "a.png")
    plot(found, half, "title", tmp_path / "b.png")
    plot(found, half, "title", tmp_path / "c.png", half)
    a, b, c = (matplotlib.image.imread(tmp_path / name) for name in ("a.png", "b.png", "c.png"))
    assert a.std() > 0.05
    assert b.shape[0] > 1.8 * a.shape[0]
    assert c.shape[0] > 2.8 * a.shape[0]


def test_the_map_of_rho_tells_apart_what_lies_near_1(tmp_path, drawn):
    found = of(k_proj=[0.2, 0.5], up_proj=[0.4, 0.4])
    plot(found, dict.fromkeys(found, 0.97), "title", tmp_path / "a.png")
    ends = [axis.images[0].get_clim() for axis in drawn().axes if axis.images]
    assert ends == [(0, 1), (0.9, 1)]
