"""A compensated model on disk: its vectors beside U and V, its recipe, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import rsparse
from rsparse.errors import RSparseError
from rsparse.sparse_model import densify, state, unit_members
from tests.support.folders import config_of, edit_config, sparse_model, tensors_of
from tests.support.models import tiny_model, tiny_tokenizer, token_ids
from tests.support.recipes import LAYOUTS, TYPES, with_vectors

IDS = token_ids(2, 20, seed=5)
OWN = "rsparse.safetensors"


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def load(folder, **options):
    return rsparse.from_pretrained(folder, device="cpu", **options)[0]


def vectors(model):
    return {name: module.compensation for name, module in model.named_modules() if hasattr(module, "compensation")}


def assert_same(loaded, model):
    assert state(loaded).recipe == state(model).recipe
    expected, found = vectors(model), vectors(loaded)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], vector) for name, vector in expected.items())
    assert torch.equal(logits(loaded), logits(model))


@pytest.fixture
def folder(tmp_path):
    model = with_vectors(sparse_model("llama", grouping="group", stacked=True))
    return rsparse.save_pretrained(model, tmp_path / "model", tiny_tokenizer())


@pytest.mark.parametrize("rho", [1.0, 0.6])
@pytest.mark.parametrize(("grouping", "stacked"), LAYOUTS)
def test_loads_as_it_was_saved(tmp_path, grouping, stacked, rho):
    model = with_vectors(sparse_model("qwen2", rho, grouping=grouping, stacked=stacked))
    rsparse.save_pretrained(model, tmp_path / "once", tiny_tokenizer())
    loaded = load(tmp_path / "once")
    assert len(vectors(loaded)) == 14
    assert_same(loaded, model)
    rsparse.save_pretrained(loaded, tmp_path / "twice", tiny_tokenizer())
    assert_same(load(tmp_path / "twice"), model)


def test_what_is_in_the_folder(tmp_path):
    model = with_vectors(sparse_model("llama", 1.0))
    rsparse.save_pretrained(model, tmp_path / "model", tiny_tokenizer())
    own = tensors_of(tmp_path / "model")[OWN]
    assert {name: list(tensor.shape) for name, tensor in own.items()} == {
        f"{name}.compensation": [out]
        for unit in state(model).recipe.units.values()
        for name, out in zip(unit.linears, unit.outs, strict=True)
    }
    recipe = config_of(tmp_path / "model")["quantization_config"]["recipe"]
    assert recipe["compensation"] == "a text: vectors"
    assert all(unit["compensated"] for unit in recipe["units"].values())


def test_units_with_and_without(tmp_path):
    model = with_vectors(sparse_model("llama"))
    recipe, name = state(model).recipe, "model.layers.1.mlp.up_proj"
    state(model).recipe = dataclasses.replace(
        recipe, units={**recipe.units, name: dataclasses.replace(recipe.units[name], compensated=False)}
    )
    model.get_submodule(name).compensation = None
    rsparse.save_pretrained(model, tmp_path / "model", tiny_tokenizer())
    loaded = load(tmp_path / "model")
    assert loaded.get_submodule(name).compensation is None
    assert sum(vector is not None for vector in vectors(loaded).values()) == 13
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_take_the_models_dtype(folder, dtype):
    before = vectors(load(folder))
    loaded = load(folder, dtype=dtype)
    assert all(torch.equal(vector, before[name].to(dtype)) for name, vector in vectors(loaded).items())
    assert {vector.dtype for vector in vectors(loaded).values()} == {dtype}
    assert logits(loaded).isfinite().all()


@pytest.mark.parametrize("model_type", TYPES)
def test_densify_gives_back_the_dense_model(tmp_path, model_type):
    model = with_vectors(sparse_model(model_type))
    rsparse.save_pretrained(model, tmp_path / "sparse", tiny_tokenizer())
    dense = densify(load(tmp_path / "sparse"))
    assert torch.equal(logits(dense), logits(tiny_model(model_type)))
    rsparse.save_pretrained(dense, tmp_path / "dense", tiny_tokenizer())
    assert not any("compensation" in name for tensors in tensors_of(tmp_path / "dense").values() for name in tensors)


def refused(says, folder):
    with pytest.raises(RSparseError, match=says) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


NAME = "model.layers.0.mlp.down_proj.compensation"


@pytest.mark.parametrize("shape", [(47,), (1,), (48, 1), ()])
def test_a_vector_of_another_shape(folder, shape):
    tensors = load_file(folder / OWN)
    assert tensors[NAME].shape == (48,)
    tensors[NAME] = torch.ones(shape)
    save_file(tensors, folder / OWN, metadata={"format": "pt"})
    refused("compensation|shape", folder)


def test_a_vector_of_another_shape_that_transformers_lets_in(folder):
    from rsparse.checkpoint.quantizer import _check_shapes

    model = load(folder)
    members, recipe = unit_members(model), state(model).recipe
    for name, each in members.items():
        _check_shapes(name, recipe.units[name], each)
    members["model.layers.0.qkv"][1].compensation = torch.ones(48)
    with pytest.raises(RSparseError, match=r"compensation of unit model\.layers\.0\.qkv is \[48\], and the recipe says \[24\]"):
        _check_shapes("model.layers.0.qkv", recipe.units["model.layers.0.qkv"], members["model.layers.0.qkv"])


def test_a_vector_that_the_file_lacks(folder):
    tensors = load_file(folder / OWN)
    del tensors[NAME]
    save_file(tensors, folder / OWN, metadata={"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][NAME]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(NAME.replace(".", r"\."), folder)


def test_vectors_that_the_recipe_does_not_know(folder):
    quantization = config_of(folder)["quantization_config"]
    for unit in quantization["recipe"]["units"].values():
        unit["compensated"] = False
    edit_config(folder, quantization_config=quantization)
    refused("holds sparse tensors .*compensation", folder)
