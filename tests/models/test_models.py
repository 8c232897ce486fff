from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from rsparse.errors import RSparseError
from rsparse.models import spec_for, supported_model_types
from rsparse.models.layout import blocks, linear_weights, sites, unit_shapes
from tests.support.models import tiny_model, token_ids

GROUPS = {"qkv": ["q_proj", "k_proj", "v_proj"], "o": ["o_proj"], "gate_up": ["gate_proj", "up_proj"], "down": ["down_proj"]}


def test_the_promised_architectures_are_here():
    promised = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"}
    assert promised <= set(supported_model_types())


@pytest.mark.parametrize("model_type", supported_model_types())
def test_spec_is_filed_under_its_own_name(model_type):
    assert spec_for(AutoConfig.for_model(model_type)).model_type == model_type


@pytest.mark.parametrize("model_type", supported_model_types())
def test_sites_cover_every_linear_of_every_block_once(model_type):
    model = tiny_model(model_type)
    found = sites(model)
    assert len(found) == len(blocks(model)) == model.config.num_hidden_layers
    for index, block in enumerate(found):
        leaves = {site.name.rpartition(".")[2]: [name.rpartition(".")[2] for name in site.linears] for site in block}
        assert leaves == GROUPS
        assert all(site.name.startswith(f"model.layers.{index}.") for site in block)
    named = {name: linear for block in found for site in block for name, linear in site.linears.items()}
    inside = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers" in name}
    assert named == inside
    assert linear_weights(model) == sum(linear.weight.numel() for linear in inside.values())


@pytest.mark.parametrize("model_type", supported_model_types())
def test_sites_are_in_the_order_of_execution_and_share_their_input(model_type):
    model = tiny_model(model_type)
    calls = []
    for site in (site for block in sites(model) for site in block):
        for linear in site.linears.values():
            linear.register_forward_pre_hook(lambda module, args, site=site: calls.append((site.name, args[0])))
    with torch.no_grad():
        model(token_ids(1, 3))
    names = [name for name, _ in calls]
    assert list(dict.fromkeys(names)) == [site.name for block in sites(model) for site in block]
    inputs: dict[str, list[torch.Tensor]] = {}
    for name, x in calls:
        inputs.setdefault(name, []).append(x)
    assert all(x is group[0] for group in inputs.values() for x in group)


def test_shapes_of_grouped_query_attention():
    model = tiny_model("gemma3_text")  # hidden 48, 4 heads and 2 kv heads of 16, MLP 80
    qkv, o, gate_up, down = sites(model)[0]
    assert (list(qkv.shapes.values()), qkv.in_features) == ([64, 32, 32], 48)
    assert (list(o.shapes.values()), o.in_features) == ([48], 64)
    assert (list(gate_up.shapes.values()), gate_up.in_features) == ([80, 80], 48)
    assert (list(down.shapes.values()), down.in_features) == ([48], 80)
    assert qkv.first is model.model.layers[0].self_attn.q_proj


def test_units_by_grouping():
    model = tiny_model("llama")
    grouped, single = unit_shapes(model, "group"), unit_shapes(model, "linear")
    assert (len(grouped), len(single)) == (8, 14)
    prefix = "model.layers.1.self_attn"
    assert grouped["model.layers.1.qkv"] == ({f"{prefix}.q_proj": 48, f"{prefix}.k_proj": 24, f"{prefix}.v_proj": 24}, 48)
    assert single[f"{prefix}.k_proj"] == ({f"{prefix}.k_proj": 24}, 48)
    assert list(single)[:4] == [f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"]


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        ("phi3", "phi3 is not supported.*fused"),
        ("mixtral", "mixtral is a mixture of experts"),
        ("qwen2_moe", "qwen2_moe is a mixture of experts"),
        ("deepseek_v3", "deepseek_v3 is a mixture of experts"),
        ("phimoe", "phimoe is a mixture of experts"),
        ("t5", "t5 is an encoder-decoder"),
        ("gemma3", "gemma3 .*gemma3_text"),
        ("gpt2", "gpt2 .*Conv1D"),
        ("cohere", r"'cohere'.*add src/rsparse/models/architectures/cohere\.py.*llama"),
    ],
)
def test_refusals_say_what_stands_in_the_way(model_type, says):
    with pytest.raises(RSparseError, match=says) as caught:
        spec_for(AutoConfig.for_model(model_type))
    assert "\n" not in str(caught.value)


def test_layout_refuses_before_it_looks_for_blocks():
    class Odd(nn.Module):
        config = AutoConfig.for_model("cohere")

    for ask in (blocks, sites, linear_weights):
        with pytest.raises(RSparseError, match="cohere"):
            ask(Odd())


def test_quantised_linears_are_refused_by_name():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj = nn.Identity()
    with pytest.raises(RSparseError, match=r"model\.layers\.1\.mlp\.up_proj is a Identity.*unquantised"):
        sites(model)
