"""GRIFFIN's levels, and a whole model against a second implementation: MLPs cut down to the chosen neurons."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rsparse import make_recipe, sparsify
from rsparse.errors import RSparseError
from rsparse.runtime.generation import generate
from rsparse.sparse_model import state
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, tiny_tokenizer, token_ids


def test_levels():
    model = tiny_model("llama")
    plan = make_recipe(model, "griffin", 0.25)
    assert (plan.rule, plan.thresholds, plan.settled) == ("prompt", {}, True)
    assert plan.kept == pytest.approx(1 - 0.25 * 18432 / 11520)  # gate, up and down drop together
    assert make_recipe(model, "griffin", 0.9, level="own").kept == 0.5
    with pytest.raises(RSparseError, match=r"^sparsity 0.6 is past GRIFFIN's floor: it drops at most 0.593 on this model$"):
        make_recipe(model, "griffin", 0.6)


@torch.no_grad()
def cut_down(model, prompt, kept):
    """A model whose MLPs have the `kept` neurons that the source's statistic picks on the prompt [1, tokens]."""
    small, seen = copy.deepcopy(model), {}
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, args, index=index: seen.update({index: args[0]}))
        for index, layer in enumerate(model.model.layers)
    ]
    model(prompt)
    for handle in handles:
        handle.remove()
    for index, layer in enumerate(small.model.layers):
        z = seen[index][0]
        chosen = (z / z.norm(dim=-1, keepdim=True)).norm(dim=0).topk(kept).indices
        mlp = layer.mlp
        for name, weight in (
            ("gate_proj", mlp.gate_proj.weight[chosen]),
            ("up_proj", mlp.up_proj.weight[chosen]),
            ("down_proj", mlp.down_proj.weight[:, chosen]),
        ):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
            linear.weight = nn.Parameter(weight.clone())
            setattr(mlp, name, linear)
    return small


@torch.no_grad()
def two_models(dense, small, prompt, rest):
    """Logits of `rest` by `small` on the cache that `dense` made of the prompt."""
    cache = dense(prompt, use_cache=True).past_key_values
    return small(rest, past_key_values=cache).logits


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen3"])
def test_it_is_the_model_cut_down_after_its_prompt(model_type):
    dense, ids = tiny_model(model_type, dtype=torch.float64), token_ids(3, 10)
    lengths = [7, 4, 6]
    model = tiny_model(model_type, dtype=torch.float64)
    sparsify(model, make_recipe(model, "griffin", 0.25, level="own"))
    with state(model).policy.using(TokenPolicy("decode"), torch.tensor(lengths)), torch.no_grad():
        found = model(ids).logits
    for row, length in enumerate(lengths):
        prompt, rest = ids[row : row + 1, :length], ids[row : row + 1, length:]
        expected = two_models(dense, cut_down(dense, prompt, 40), prompt, rest)
        assert torch.allclose(found[row, length:], expected[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3_text"])
def test_generation_from_padded_prompts(model_type):
    """Each prompt of a batch makes its own choice, without the padding in front of it."""
    dense = tiny_model(model_type, dtype=torch.float64)
    model = tiny_model(model_type, dtype=torch.float64)
    sparsify(model, make_recipe(model, "griffin", 0.25, level="own"))
    prompts = [token_ids(1, 9, seed=1)[0].tolist(), token_ids(1, 4, seed=2)[0].tolist()]
    result = generate(model, tiny_tokenizer(), prompts, max_new_tokens=5, ignore_eos=True)
    for prompt, found in zip(prompts, result.token_ids.tolist(), strict=True):
        ids = torch.tensor([prompt])
        small = cut_down(dense, ids, 40)
        logits = [dense(ids).logits[0, -1]]
        for step in range(1, 5):
            logits.append(two_models(dense, small, ids, torch.tensor([found[:step]]))[0, -1])
        assert found == [int(each.argmax()) for each in logits]


def test_by_size_alone_it_would_be_others():
    """The statistic matters on these prompts: normalising by token changes the choice."""
    model = tiny_model("llama", dtype=torch.float64)
    sparsify(model, make_recipe(model, "griffin", 0.25, level="own"))
    seen = []
    mlp = model.model.layers[0].mlp
    mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(token_ids(1, 8))
    by_size = torch.zeros(80, dtype=torch.bool).index_fill(0, seen[0][0].norm(dim=0).topk(40).indices, True)
    assert not torch.equal(mlp.rule._chosen[0, 0], by_size)
    by_token = F.normalize(seen[0][0], dim=-1).norm(dim=0).topk(40).indices
    assert mlp.rule._chosen[0, 0][by_token].all()
