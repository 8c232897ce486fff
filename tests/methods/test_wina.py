"""WINA: TEAL's greedy under |x_j|·‖W[:, j]‖₂."""

from __future__ import annotations

import pytest
import torch

from rsparse import make_recipe
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from tests.methods.greedy_reference import block_total, reference_levels, spread, untouched
from tests.support.models import tiny_model
from tests.support.recipes import SEQ_LEN, calibration_of

TOKENS = 8 * SEQ_LEN


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_the_greedy_uses_its_own_score(model_type):
    model, calibration = tiny_model(model_type, dtype=torch.float64), calibration_of(model_type)
    recipe = make_recipe(model, "wina", 0.43, calibration=calibration, tokens=TOKENS, step=0.05, exhaustive=True)
    windows = spread(calibration.windows, 8)
    found = {name: unit.sparsity for name, unit in recipe.units.items() if ".layers.1." in name}
    assert found == pytest.approx(reference_levels(model, calibration, 0.43, "column_norm", windows, 1), abs=1e-9)
    assert found != pytest.approx(reference_levels(model, calibration, 0.43, "magnitude", windows, 1), abs=1e-3)


@pytest.mark.parametrize("grouping", ["linear", "group"])
def test_recipe(grouping):
    model, calibration = tiny_model("llama"), calibration_of("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = make_recipe(model, "wina", 0.5, calibration=calibration, tokens=TOKENS, grouping=grouping)
    untouched(model, before)
    assert (recipe.method, recipe.grouping) == ("wina", grouping)
    assert {(unit.criterion, unit.rho, unit.rank) for unit in recipe.units.values()} == {("column_norm", 1.0, 0)}
    assert [block_total(recipe, block) for block in (0, 1)] == pytest.approx([0.5] * 2, abs=1e-9)
    assert len({unit.sparsity for unit in recipe.units.values()}) > 3
    sparsify(model, recipe, calibration)
    assert model.rsparse.recipe.settled


def test_the_sources_step_is_the_default():
    model, calibration = tiny_model("llama"), calibration_of("llama")
    share = 0.025 * 2304 / 18432  # one step of 0.025 of q_proj
    recipe = make_recipe(model, "wina", share, calibration=calibration, tokens=SEQ_LEN)
    assert len([unit for name, unit in recipe.units.items() if unit.sparsity and ".layers.0." in name]) == 1
    assert recipe == make_recipe(model, "wina", share, calibration=calibration, tokens=SEQ_LEN, step=0.025)
    two_steps = make_recipe(model, "wina", 2 * share, calibration=calibration, tokens=SEQ_LEN)
    assert two_steps.sparsity == pytest.approx(2 * share, abs=1e-12)


def test_uniform_is_sparse_only_by_column_norm():
    model = tiny_model("llama")
    recipe = make_recipe(model, "wina", 0.5, allocation="uniform")
    assert recipe.method == "wina"
    assert recipe.units == make_recipe(model, "sparse_only", 0.5, criterion="column_norm").units


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "method wina needs a calibration for its greedy allocation, or allocation 'uniform'"),
        ({"allocation": "fair"}, "allocation must be one of greedy, uniform, got 'fair'"),
        ({"criterion": "magnitude"}, "method wina takes no option 'criterion'"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(RSparseError, match=says):
        make_recipe(tiny_model("llama"), "wina", 0.5, **options)
