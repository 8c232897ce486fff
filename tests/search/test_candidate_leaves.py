"""What a candidate model leaves behind: the dense model, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from rsparse.errors import RSparseError
from rsparse.sparse_model import is_sparse, state
from tests.search.candidates import candidates_of, recipe_of
from tests.support.models import tiny_model
from tests.support.recipes import TYPES, calibration_of


def snapshot(model):
    kinds = {name: type(module) for name, module in model.named_modules()}
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return kinds, tensors


def assert_dense(model, before):
    kinds, tensors = before
    assert not is_sparse(model)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    now = model.state_dict()
    assert list(now) == list(tensors)
    assert all(torch.equal(now[name], tensor) for name, tensor in tensors.items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("model_type", TYPES)
def test_the_model_is_dense_again_after_close(model_type):
    model, ids = tiny_model(model_type), calibration_of(model_type).windows[:2]
    before, logits = snapshot(model), model(ids).logits
    candidates = candidates_of(model, "group")
    assert is_sparse(model)
    candidates.evaluate(recipe_of(model, 0.5, "group"))
    assert not torch.equal(model(ids).logits, logits)
    candidates.close()
    assert_dense(model, before)
    assert torch.equal(model(ids).logits, logits)


@pytest.mark.parametrize("where", ["fitted_factors", "install_unit"])
def test_an_error_on_the_way_in_leaves_the_dense_model(monkeypatch, where):
    import rsparse.search.candidate as module

    model, real, calls = tiny_model("llama"), getattr(module, where), []

    def failing(*args, **options):
        calls.append(None)
        if len(calls) == 9:
            raise MemoryError("no room")
        return real(*args, **options)

    monkeypatch.setattr(module, where, failing)
    before = snapshot(model)
    with pytest.raises(MemoryError):
        candidates_of(model)
    assert_dense(model, before)


def test_an_error_in_the_middle_leaves_no_hook_and_no_policy():
    model = tiny_model("llama")
    before, candidates = snapshot(model), candidates_of(model)
    recipe = recipe_of(model, 0.5)
    right, policy = candidates.evaluate(recipe), state(model).policy.token_policy

    class BadError(Exception):
        pass

    def stop(module, args):
        raise BadError

    hook = model.get_submodule("model.layers.1.mlp.up_proj").register_forward_pre_hook(stop, prepend=True)
    with pytest.raises(BadError):
        candidates.evaluate(recipe_of(model, 1.0))
    hook.remove()
    assert not any(isinstance(module, nn.Linear) and module._forward_pre_hooks for module in model.modules())
    assert state(model).policy.token_policy == policy
    assert candidates.evaluate(recipe) == right
    candidates.close()
    assert_dense(model, before)


@pytest.mark.parametrize("objective", ["perplexity", "kl"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_fitness_that_is_not_finite_is_refused(objective, value):
    model = tiny_model("llama")
    candidates = candidates_of(model, objective=objective)
    before = model.model.norm.weight.data.clone()
    model.model.norm.weight.data.fill_(value)
    with pytest.raises(RSparseError, match="not finite"):
        candidates.evaluate(recipe_of(model, 1.0))
    model.model.norm.weight.data.copy_(before)
    assert candidates.evaluate(recipe_of(model, 1.0)).value > 0


def test_a_model_that_is_sparse_already_is_left_as_it_is():
    model = tiny_model("llama")
    candidates = candidates_of(model)
    with pytest.raises(RSparseError, match="sparse already"):
        candidates_of(model)
    assert is_sparse(model)
    candidates.close()


def test_a_recipe_is_not_changed():
    model = tiny_model("llama")
    recipe = recipe_of(model, 0.5)
    before = dataclasses.asdict(recipe)
    candidates_of(model).evaluate(recipe)
    assert dataclasses.asdict(recipe) == before
