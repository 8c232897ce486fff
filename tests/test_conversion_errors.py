"""Whatever goes wrong, the model is dense again; and a recipe that has its thresholds needs no calibration."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

import rsparse.conversion
from rsparse.calibration import Calibration
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from rsparse.recipe import Recipe
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import is_sparse, state
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import calibration_of, uniform

IDS = token_ids(2, 9)


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@pytest.fixture
def model():
    """A dense model that the test must leave dense."""
    model = tiny_model("llama")
    before = logits(model)
    yield model
    assert not is_sparse(model)
    assert not any(isinstance(module, RSparseLinear) for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all("forward" not in vars(block) for block in model.model.layers)
    assert torch.equal(logits(model), before)


def refused(says, *arguments, **options):
    with pytest.raises(RSparseError, match=says) as caught:
        sparsify(*arguments, **options)
    assert "\n" not in str(caught.value)


def changed(recipe, name, **changes):
    units = {**recipe.units, name: dataclasses.replace(recipe.units[name], **changes)}
    return dataclasses.replace(recipe, units=units)


def test_a_compensated_models_recipe(model):
    """Its vectors are nowhere but in its checkpoint: with zeros in their place it would be another model."""
    recipe = uniform(model)
    settled = recipe.with_thresholds(dict.fromkeys(recipe.units, 0.5))
    for given in (recipe, settled):
        some = changed(given, "model.layers.0.mlp.up_proj", compensated=True)
        refused("its vectors are in that checkpoint, not in the recipe", model, some, calibration_of("llama"))
    refused("its vectors are in that checkpoint", model, changed(settled, "model.layers.0.mlp.up_proj", compensated=True))


def test_recipes_of_other_models(model):
    calibration = calibration_of("llama")
    for other, says in (
        (tiny_model("qwen2"), "qwen2"),
        (tiny_model("llama", num_hidden_layers=3), r"model\.layers\.2\..*lacks"),
        (tiny_model("llama", intermediate_size=96), r"\[80, 48\].*\[96, 48\]"),
        (tiny_model("llama", num_key_value_heads=4), r"k_proj is \[24, 48\] here and \[48, 48\] there"),
    ):
        for grouping in ("linear", "group"):
            refused(says, model, uniform(other, 0.5, grouping=grouping), calibration)


def test_units_that_do_not_match_the_grouping(model):
    grouped = uniform(model, 0.5, grouping="group")
    refused("grouping", model, dataclasses.replace(grouped, grouping="linear"), calibration_of("llama"))
    name = "model.layers.0.qkv"
    unit = grouped.units[name]
    partial = changed(grouped, name, linears=unit.linears[:2], outs=unit.outs[:2], ranks=(0, 0))
    refused(f"{name} does not match", model, partial, calibration_of("llama"))


def test_an_unknown_criterion(model):
    recipe = changed(uniform(model, 0.5), "model.layers.1.mlp.down_proj", criterion="taste")
    refused("'taste'", model, recipe, calibration_of("llama"))


def test_an_unknown_backend(model):
    refused("'magic'", model, uniform(model, 0.5), calibration_of("llama"), backend="magic")


def test_a_calibration_of_another_model(model):
    refused("of another model", model, uniform(model, 0.5), calibration_of("qwen2"))


def test_no_calibration_where_one_is_needed(model):
    refused("needs a calibration", model, uniform(model, 0.5))
    solved = uniform(model, 0.5, 0.6, fit="dropped").with_thresholds(dict.fromkeys(uniform(model).units, 0.1))
    refused("needs a calibration", model, solved)
    all_but_one = dataclasses.replace(solved, fit="svd").with_thresholds({"model.layers.0.mlp.up_proj": None})
    refused("needs a calibration", model, all_but_one)


def test_a_damaged_block_midway(model, tmp_path):
    shutil.copytree(calibration_of("llama").folder, tmp_path / "calibration")
    path = tmp_path / "calibration" / "block-00001.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused("calibrate again", model, uniform(model, 0.5), Calibration.load(tmp_path / "calibration"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", ["install_unit", "solve_threshold"])
def test_an_exception_midway(model, monkeypatch, place, error):
    real, calls = getattr(rsparse.conversion, place), []

    def fail(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 6:
            raise error("stop")
        return real(*arguments, **options)

    monkeypatch.setattr(rsparse.conversion, place, fail)
    with pytest.raises(error, match="stop"):
        sparsify(model, uniform(model, 0.5, grouping="group"), calibration_of("llama"))
    assert len(calls) == 6


def test_activations_that_overflow_are_named():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3] = float("inf")
    refused(r"layers\.0\..*not finite", model, uniform(model, 0.5, grouping="group"), calibration_of("llama"))
    assert not is_sparse(model)


def test_a_sparse_model_is_not_made_sparse_again():
    model = tiny_model("llama")
    sparsify(model, uniform(model, 0.5), calibration_of("llama"))
    before = logits(model)
    refused("sparse already", model, uniform(model, 0.3), calibration_of("llama"))
    assert is_sparse(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("grouping", ["linear", "group"])
@pytest.mark.parametrize("rho", [0.6, 1.0])
def test_a_settled_recipe_needs_no_calibration(tmp_path, grouping, rho):
    first = tiny_model("llama")
    sparsify(first, uniform(first, 0.5, rho, grouping=grouping, criterion="column_norm"), calibration_of("llama"), seed=4)
    recipe = state(first).recipe
    assert recipe.settled
    recipe.save(tmp_path / "recipe.json")
    second = sparsify(tiny_model("llama"), Recipe.load(tmp_path / "recipe.json"), seed=4)
    assert torch.equal(logits(second), logits(first))
    assert state(second).recipe.units == recipe.units


def test_rho_one_needs_no_calibration_whatever_its_fit():
    model = tiny_model("llama")
    recipe = uniform(model, 0.5, fit="dropped").with_thresholds(dict.fromkeys(uniform(model).units, 0.1))
    assert is_sparse(sparsify(model, recipe))


@pytest.mark.parametrize("settle_tokens", [0, 1 << 20])
def test_thresholds_that_are_given_stay(settle_tokens):
    model = tiny_model("llama")
    recipe = uniform(model, 0.5, 0.6, fit="dropped").with_thresholds(dict.fromkeys(uniform(model).units, 0.125))
    sparsify(model, recipe, calibration_of("llama"), settle_tokens=settle_tokens)
    assert state(model).recipe.units == recipe.units
    members = [module for module in model.modules() if isinstance(module, RSparseLinear)]
    assert all(float(member.threshold) == 0.125 for member in members)
