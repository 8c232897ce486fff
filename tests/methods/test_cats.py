"""CATS's levels by hand. A block of the tiny Llama: q, o 2304, k, v 1152, MLP 3 × 3840; 18432."""

from __future__ import annotations

import pytest

from rsparse import make_recipe
from rsparse.errors import RSparseError
from rsparse.methods import makes_recipe
from tests.support.models import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def test_a_level_is_of_all_linears(model):
    plan = make_recipe(model, "cats", 0.25)
    assert (plan.method, plan.rule, plan.sparsity, plan.kept_heads) == ("cats", "gate_magnitude", 0.25, None)
    assert plan.kept == pytest.approx(1 - 0.25 * 18432 / 7680)  # up and down drop together
    assert plan.thresholds is None
    assert not plan.settled


def test_its_own_level_is_half_of_the_neurons(model):
    plan = make_recipe(model, "cats", 0.9, level="own")
    assert plan.kept == 0.5
    assert plan.sparsity == pytest.approx(0.5 * 7680 / 18432)


def test_the_published_level():
    """Llama-2-7B: 4 · 4096² and 3 · 4096 · 11008 weights a block; half of up and down is 22 %."""
    model = tiny_model("llama", hidden_size=64, intermediate_size=172, num_key_value_heads=4)  # the same proportions
    assert make_recipe(model, "cats", 0.0, level="own").sparsity == pytest.approx(0.22, abs=0.005)
    assert make_recipe(model, "griffin", 0.0, level="own").sparsity == pytest.approx(0.33, abs=0.005)


def test_its_floor(model):
    """0.95 of up and down: with all of them dropped nothing is left of an MLP. The figure is rounded down."""
    assert make_recipe(model, "cats", 0.95 * 7680 / 18432).kept == pytest.approx(0.05)
    with pytest.raises(RSparseError, match=r"^sparsity 0.396 is past CATS's floor: it drops at most 0.395 on this model$"):
        make_recipe(model, "cats", 0.396)
    assert make_recipe(model, "cats", 0.395).kept > 0.05


def test_options(model):
    assert not makes_recipe("cats")
    assert makes_recipe("teal")
    with pytest.raises(RSparseError, match="level must be one of asked, own, got 'high'"):
        make_recipe(model, "cats", 0.2, level="high")
    with pytest.raises(RSparseError, match="method cats takes no option 'rho'"):
        make_recipe(model, "cats", 0.2, rho=0.5)
