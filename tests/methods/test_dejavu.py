"""Deja Vu's budget by hand: q, o 2304 each, k, v 1152 each, MLP 11520 of a block's 18432; 4 heads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rsparse import make_recipe, sparsify
from rsparse.errors import RSparseError
from rsparse.sparse_model import achieved_sparsity, measuring, state
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, token_ids


@pytest.mark.parametrize(
    ("sparsity", "heads", "kept"),
    [
        (0.0, 4, 1.0),
        (0.5, 2, 1 - (0.5 * 18432 - 2304) / 11520),  # 0.5/0.875 = 57 % to drop: of 4 heads 2, and more of the neurons
        (0.1, 4, 1 - 0.1 * 18432 / 11520),  # 11 % of 4 heads is none
        (0.25, 3, 1 - (0.25 * 18432 - 1152) / 11520),
        (0.83, 0, 1 - (0.83 * 18432 - 4608) / 11520),
    ],
)
def test_heads_and_neurons(sparsity, heads, kept):
    plan = make_recipe(tiny_model("llama"), "dejavu", sparsity)
    assert (plan.rule, plan.kept_heads, plan.settled) == ("oracle", heads, True)
    assert plan.kept == pytest.approx(kept, abs=1e-9)


@pytest.mark.parametrize("sparsity", [level / 100 for level in range(0, 84, 3)])
def test_every_level_has_whole_heads_and_its_bytes(sparsity):
    plan = make_recipe(tiny_model("llama"), "dejavu", sparsity)
    assert (1 - plan.kept) * 11520 + (4 - plan.kept_heads) * 1152 == pytest.approx(sparsity * 18432)


def test_its_floor():
    with pytest.raises(RSparseError, match=r"^sparsity 0.9 is past Deja Vu's floor: it drops at most 0.831 on this model$"):
        make_recipe(tiny_model("llama"), "dejavu", 0.9)


@torch.no_grad()
def by_hooks(ids, heads, neurons):
    """The dense model whose o_proj and down_proj see the largest alone."""
    other = tiny_model("llama", dtype=torch.float64)

    def top(module, args):
        x = args[0]
        return (x * (x.abs() >= x.abs().topk(neurons, dim=-1).values[..., -1:]),)

    def top_heads(module, args):
        x = args[0].view(*args[0].shape[:2], 4, 12)
        norms = x.pow(2).sum(-1)
        return ((x * (norms >= norms.topk(heads, dim=-1).values[..., -1:])[..., None]).reshape(args[0].shape),)

    for layer in other.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(top)
        layer.self_attn.o_proj.register_forward_pre_hook(top_heads)
    return other(ids).logits


@torch.no_grad()
def test_a_second_implementation():
    model, ids = tiny_model("llama", dtype=torch.float64), token_ids(3, 12)
    sparsify(model, make_recipe(model, "dejavu", 0.5))
    with state(model).policy.using(TokenPolicy("all", sink_tokens=0)), measuring(model) as meter:
        found = model(ids).logits
    assert torch.allclose(found, by_hooks(ids, 2, 32), rtol=1e-9, atol=1e-9)
    assert achieved_sparsity(model, meter)[0] == pytest.approx(0.5)


def test_heads_alone():
    """All neurons kept: the MLPs stay the model's own, heads are still chosen."""
    model = tiny_model("llama")
    plan = make_recipe(model, "dejavu", 2 * 1152 / 18432)
    assert plan.kept_heads == 3
    sparsify(model, dataclasses.replace(plan, kept=1.0))
    with measuring(model) as meter, torch.no_grad():
        model(token_ids(2, 9))
    assert achieved_sparsity(model, meter)[0] == pytest.approx(1152 / 18432)
