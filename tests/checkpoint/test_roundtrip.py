"""What is saved comes back: the same tokens' logits bit for bit, the same recipe, in a folder dense tools can read."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import rsparse
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import densify, is_sparse, state
from tests.support.folders import config_of, sparse_model, tensors_of
from tests.support.models import tiny_model, tiny_tokenizer, token_ids
from tests.support.recipes import LAYOUTS, TYPES, calibration_of, uniform

IDS = token_ids(2, 20, seed=5)
OWN = "rsparse.safetensors"
INDEX = "model.safetensors.index.json"


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def save(model, folder, **options):
    return rsparse.save_pretrained(model, folder, tiny_tokenizer(), **options)


def load(folder, **options):
    return rsparse.from_pretrained(folder, device="cpu", **options)[0]


def sparse_linears(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, RSparseLinear)}


def assert_same_model(loaded, model):
    assert is_sparse(loaded)
    assert not loaded.training
    assert state(loaded).recipe == state(model).recipe
    expected = sparse_linears(model)
    found = sparse_linears(loaded)
    assert list(found) == list(expected)
    for name, module in expected.items():
        for key in ("weight", "bias", "U", "V", "channel_scale", "threshold"):
            before, after = getattr(module, key), getattr(found[name], key)
            assert (before is None) == (after is None), f"{name}.{key}"
            assert before is None or torch.equal(before, after), f"{name}.{key}"
    assert torch.equal(logits(loaded), logits(model))


CRITERIA = ["magnitude", "column_norm", "residual_norm", "paper"]


@pytest.mark.parametrize("rho", [1.0, 0.6])
@pytest.mark.parametrize(("grouping", "stacked"), LAYOUTS)
@pytest.mark.parametrize("model_type", TYPES)
def test_loads_as_it_was_saved(tmp_path, model_type, grouping, stacked, rho):
    model = tiny_model(model_type)
    recipe = uniform(model, 0.5, rho, grouping=grouping, stacked=stacked)
    units = zip(recipe.units.items(), itertools.cycle(CRITERIA))  # every criterion meets every kind of unit
    mixed = {name: dataclasses.replace(unit, criterion=criterion) for (name, unit), criterion in units}
    rsparse.sparsify(model, dataclasses.replace(recipe, units=mixed), calibration_of(model_type))
    assert not torch.equal(logits(model), logits(tiny_model(model_type)))
    before = logits(model)
    save(model, tmp_path / "once")
    assert torch.equal(logits(model), before)  # saving changed nothing
    loaded = load(tmp_path / "once")
    assert_same_model(loaded, model)
    for members in _groups(loaded):
        assert len({float(member.threshold) for member in members}) == 1
    save(loaded, tmp_path / "twice")
    assert_same_model(load(tmp_path / "twice"), model)


def _groups(model):
    groups = {}
    for module in sparse_linears(model).values():
        groups.setdefault(module.unit, []).append(module)
    return groups.values()


@pytest.mark.parametrize(("grouping", "stacked"), LAYOUTS)
@pytest.mark.parametrize("model_type", TYPES)
def test_the_folder(tmp_path, model_type, grouping, stacked):
    model, dense = sparse_model(model_type, grouping=grouping, stacked=stacked, criterion="column_norm"), tiny_model(model_type)
    folder = save(model, tmp_path / "model")
    files = tensors_of(folder)
    assert sorted(files) == ["model-00001-of-00001.safetensors", OWN]
    assert not [path for path in tmp_path.iterdir() if path != folder]
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    assert weight_map == {name: file for file, tensors in files.items() for name in tensors}
    own, expected = files[OWN], {}
    for unit in state(model).recipe.units.values():
        expected[f"{unit.linears[0]}.channel_scale"] = [unit.in_features]
        shared_v = len(unit.ranks) == 1
        ranks = unit.ranks * len(unit.linears) if shared_v else unit.ranks
        for index, (name, out, rank) in enumerate(zip(unit.linears, unit.outs, ranks, strict=True)):
            expected[f"{name}.U"] = [out, rank]
            if index == 0 or not shared_v:
                expected[f"{name}.V"] = [unit.in_features, rank]
    assert {name: list(tensor.shape) for name, tensor in own.items()} == expected
    assert all(tensor.dtype == torch.float32 for tensor in own.values())
    kept = dict(dense.state_dict())
    if dense.config.tie_word_embeddings:
        del kept["lm_head.weight"]
    found = files["model-00001-of-00001.safetensors"]
    assert sorted(found) == sorted(kept)
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())


def test_config_json_holds_the_only_copy_of_the_recipe(tmp_path):
    model = sparse_model("qwen2", grouping="group", stacked=True)
    folder = save(model, tmp_path / "model")
    quantization = config_of(folder)["quantization_config"]
    assert quantization["quant_method"] == "rsparse"
    assert rsparse.Recipe.from_dict(quantization["recipe"]) == state(model).recipe
    texts = [path.read_text() for path in folder.glob("*.json")]
    assert sum("kept_share" in text or '"ranks"' in text for text in texts) == 1


def test_a_recipe_of_nothing_but_dense_units_round_trips(tmp_path):
    model = sparse_model("llama", 1.0, 0.0)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert_same_model(loaded, model)
    assert torch.equal(logits(loaded), logits(tiny_model("llama")))


def test_units_of_rank_zero_and_of_sparsity_zero_in_one_recipe(tmp_path):
    model = tiny_model("llama")
    recipe = uniform(model, 0.5, 0.6, criterion="paper")
    units = dict(recipe.units)
    units["model.layers.0.self_attn.q_proj"] = uniform(model, 0.4, 1.0, criterion="paper").units[
        "model.layers.0.self_attn.q_proj"
    ]
    units["model.layers.1.mlp.up_proj"] = uniform(model, 0.0).units["model.layers.1.mlp.up_proj"]
    del units["model.layers.1.mlp.down_proj"]
    rsparse.sparsify(model, dataclasses.replace(recipe, units=units), calibration_of("llama"))
    save(model, tmp_path / "model")
    assert_same_model(load(tmp_path / "model"), model)


def test_several_shards(tmp_path):
    model = sparse_model("llama")
    folder = save(model, tmp_path / "model", max_shard_size="40KB")
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[-1] == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    assert_same_model(load(folder), model)


@pytest.mark.parametrize("model_type", TYPES)
def test_bfloat16_rounds_weights_but_neither_scales_nor_thresholds(tmp_path, model_type):
    model = sparse_model(model_type, criterion="residual_norm", grouping="group", stacked=True)
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model", dtype="bfloat16")
    for name, module in sparse_linears(model).items():
        found = sparse_linears(loaded)[name]
        assert found.weight.dtype == found.U.dtype == found.V.dtype == torch.bfloat16
        assert torch.equal(found.weight, module.weight.bfloat16())
        assert torch.equal(found.V, module.V.bfloat16())
        for key in ("channel_scale", "threshold"):
            assert getattr(found, key).dtype == torch.float32
            assert torch.equal(getattr(found, key), getattr(module, key))
    assert not torch.equal(model.get_submodule(name).channel_scale.bfloat16().float(), found.channel_scale)
    save(loaded, tmp_path / "again")
    again = load(tmp_path / "again", dtype="bfloat16")
    assert_same_model(again, loaded)


@pytest.mark.parametrize("grouping", ["linear", "group"])
@pytest.mark.parametrize("loaded_first", [True, False])
def test_transformers_own_save_pretrained_loads_again(tmp_path, grouping, loaded_first):
    model = sparse_model("llama", grouping=grouping, stacked=grouping == "group", criterion="column_norm")
    save(model, tmp_path / "ours")
    theirs = load(tmp_path / "ours")
    if loaded_first:
        logits(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    tiny_tokenizer().save_pretrained(tmp_path / "theirs")
    assert_same_model(load(tmp_path / "theirs"), model)


def test_auto_model_loads_it_once_registered(tmp_path):
    model = sparse_model("llama")
    folder = save(model, tmp_path / "model")
    from rsparse.checkpoint import register

    register()
    register()
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert is_sparse(loaded)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("model_type", TYPES)
def test_densify_after_load(tmp_path, model_type):
    dense = tiny_model(model_type)
    save(sparse_model(model_type, grouping="group", stacked=True), tmp_path / "sparse")
    loaded = densify(load(tmp_path / "sparse"))
    assert not is_sparse(loaded)
    assert torch.equal(logits(loaded), logits(dense))
    save(loaded, tmp_path / "dense")
    assert "quantization_config" not in config_of(tmp_path / "dense")
    assert not (tmp_path / "dense" / OWN).exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32).eval()
    assert type(again) is type(dense)
    assert torch.equal(logits(again), logits(dense))
    found, expected = again.state_dict(), dense.state_dict()
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_dense_model_is_saved_plainly(tmp_path):
    dense = tiny_model("llama")
    folder = save(dense, tmp_path / "model")
    assert "quantization_config" not in config_of(folder)
    assert sorted(tensors_of(folder)) == ["model.safetensors"]
    loaded = load(folder)
    assert not is_sparse(loaded)
    assert torch.equal(logits(loaded), logits(dense))


def test_the_tokenizer_comes_back(tmp_path):
    save(sparse_model("llama"), tmp_path / "model")
    tokenizer = rsparse.from_pretrained(tmp_path / "model", device="cpu")[1]
    text = "the river in her tower"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
