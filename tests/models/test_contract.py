"""What every architecture promises, for each file in models/architectures: a new one is tested as soon as it is there."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import rsparse
from rsparse.models import supported_model_types
from rsparse.recipe import Recipe
from rsparse.runtime import generate
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import densify, is_sparse, state
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, tiny_tokenizer, token_ids
from tests.support.recipes import calibration_of, uniform

IDS = token_ids(2, 20, seed=7)  # longer than the sliding windows
PROMPT_LENGTHS = torch.tensor([6, 11])
POLICIES = ["all", "decode", "last_fraction:0.5", "dense"]
PROMPTS = ["the river in her tower", "bread"]

every_architecture = pytest.mark.parametrize("model_type", supported_model_types())
every_grouping = pytest.mark.parametrize("grouping", ["linear", "group"])


def make(model_type, grouping):
    """Everything that a checkpoint can hold: factors, channel scales and thresholds."""
    model = tiny_model(model_type)
    recipe = uniform(model, 0.5, 0.6, grouping=grouping, stacked=grouping == "group", criterion="column_norm")
    return rsparse.sparsify(model, recipe, calibration_of(model_type))


@functools.cache
def saved(model_type, grouping):
    """(model in memory, the same from disk); shared: leave them as they are."""
    model = make(model_type, grouping)
    with tempfile.TemporaryDirectory() as folder:
        rsparse.save_pretrained(model, Path(folder) / "model", tiny_tokenizer())
        loaded, _ = rsparse.from_pretrained(Path(folder) / "model", device="cpu")
    return model, loaded


@torch.no_grad()
def logits(model, policy):
    token_policy = TokenPolicy.parse(policy)
    with state(model).policy.using(token_policy, PROMPT_LENGTHS if policy == "decode" else None):
        return model(IDS, use_cache=False).logits


@every_grouping
@every_architecture
def test_no_linear_of_the_blocks_is_forgotten(model_type, grouping):
    """Counted from the modules, not from the architecture's own description."""
    dense = tiny_model(model_type)
    head = dense.get_output_embeddings()
    expected = {name for name, module in dense.named_modules() if isinstance(module, nn.Linear) and module is not head}
    assert expected
    for model in saved(model_type, grouping):
        assert {name for name, module in model.named_modules() if isinstance(module, RSparseLinear)} == expected
        assert {name for unit in state(model).recipe.units.values() for name in unit.linears} == expected


@pytest.mark.parametrize("policy", POLICIES)
@every_grouping
@every_architecture
def test_logits_come_back_from_disk_under_every_token_policy(model_type, grouping, policy):
    model, loaded = saved(model_type, grouping)
    assert is_sparse(loaded)
    assert torch.equal(logits(loaded, policy), logits(model, policy))


@every_grouping
@every_architecture
def test_token_policies_differ_and_dense_is_the_dense_model(model_type, grouping):
    found = [logits(saved(model_type, grouping)[1], policy) for policy in POLICIES]
    for index, one in enumerate(found):
        assert not any(torch.equal(one, other) for other in found[:index]), POLICIES[index]
    with torch.no_grad():
        assert torch.equal(found[-1], tiny_model(model_type)(IDS, use_cache=False).logits)


@every_grouping
@every_architecture
def test_generated_tokens_come_back_from_disk(model_type, grouping):
    first, second = (
        generate(model, tiny_tokenizer(), PROMPTS, max_new_tokens=10, ignore_eos=True) for model in saved(model_type, grouping)
    )
    assert first.new_tokens == 20
    assert second.token_ids.tolist() == first.token_ids.tolist()
    assert second.texts == first.texts


@every_grouping
@every_architecture
def test_densify_restores_the_weights_bit_for_bit(model_type, grouping):
    original = tiny_model(model_type)
    model = densify(make(model_type, grouping))
    assert {type(module) for module in model.modules()} == {type(module) for module in original.modules()}
    found, expected = model.state_dict(), original.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, original(IDS).logits)


@every_grouping
@every_architecture
def test_the_recipe_comes_back(tmp_path, model_type, grouping):
    model, loaded = saved(model_type, grouping)
    recipe = state(model).recipe
    assert recipe.model_type == model_type
    assert recipe.settled
    assert state(loaded).recipe == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    recipe.save(tmp_path / "r.json")
    assert Recipe.load(tmp_path / "r.json") == recipe
    again = rsparse.sparsify(tiny_model(model_type), recipe, None)  # settled, and plain SVD: no calibration needed
    assert state(again).recipe == recipe
    assert torch.equal(logits(again, "all"), logits(model, "all"))
