"""A damaged or foreign folder is refused in one line that names what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import struct

import pytest
import torch
from transformers import AutoConfig

import rsparse
from rsparse.errors import RSparseError
from tests.support.folders import config_of, dense_folder, edit_config, sparse_model
from tests.support.models import tiny_model, tiny_tokenizer

WEIGHTS, OWN = "model-00001-of-00001.safetensors", "rsparse.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    model = sparse_model("llama", criterion="column_norm", grouping="group", stacked=True)
    return rsparse.save_pretrained(model, tmp_path_factory.mktemp("sparse") / "model", tiny_tokenizer())


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def refused(says, name, **options):
    with pytest.raises(RSparseError, match=says) as caught:
        rsparse.from_pretrained(name, **{"device": "cpu", **options})
    assert "\n" not in str(caught.value)


def test_a_whole_folder_loads(folder):
    model, tokenizer = rsparse.from_pretrained(folder, device="cpu")
    assert torch.isfinite(model(torch.tensor([tokenizer("river")["input_ids"]])).logits).all()


def test_missing_folders(tmp_path, monkeypatch):
    refused("nowhere", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    refused("nowhere", "./nowhere")
    refused("model.gguf does not exist", "model.gguf")
    (tmp_path / "plain.txt").write_text("text")
    refused("plain.txt", tmp_path / "plain.txt")


def test_folders_that_are_no_model(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    refused(r"no config\.json", tmp_path / "empty")
    (folder / "config.json").unlink()
    refused(r"no config\.json", folder)


@pytest.mark.parametrize("shard", [WEIGHTS, OWN])
def test_a_missing_shard(folder, shard):
    (folder / shard).unlink()
    refused(shard, folder)


@pytest.mark.parametrize("bytes_left", [0, 5, 200, -100])
@pytest.mark.parametrize("shard", [WEIGHTS, OWN])
def test_a_truncated_shard(folder, shard, bytes_left):
    path = folder / shard
    path.write_bytes(path.read_bytes()[:bytes_left])
    refused(rf"model/{re.escape(shard)} is cut short; copy or make it again", folder)


@pytest.mark.parametrize("bytes_left", [5, -100])
def test_a_truncated_dense_model(tmp_path, bytes_left):
    path = dense_folder(tmp_path / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:bytes_left])
    refused(r"model/model\.safetensors is cut short; copy or make it again", tmp_path / "model")


@pytest.mark.parametrize("header", [b"{", b"[1]", b"3", b'{"a": 3}', b'{"a": {"data_offsets": []}}', b"\xff\xfe"])
def test_a_shard_that_is_no_safetensors_file(folder, header):
    path = folder / OWN
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    refused(r"rsparse\.safetensors is damaged: it has no safetensors header", folder)


def test_a_shard_without_tensors_is_whole(folder):
    """A recipe without factors and scales has one."""
    from rsparse.shards import check_shards

    (folder / OWN).write_bytes(struct.pack("<Q", 2) + b"{}")
    assert check_shards(folder) == [folder / WEIGHTS, folder / OWN]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
def test_a_truncated_json(folder, name):
    text = (folder / name).read_text()
    (folder / name).write_text(text[: len(text) // 2])
    refused("cannot load|damaged|cut short", folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', "null"])
def test_an_index_of_the_wrong_shape(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    refused("damaged", folder)


@pytest.mark.parametrize("shard", [WEIGHTS, OWN])
def test_a_tensor_that_the_file_lacks(folder, shard):
    """transformers would leave it random, or zero."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / shard)
    name = next(name for name in tensors if name.endswith(("up_proj.weight", "up_proj.U")))
    del tensors[name]
    save_file(tensors, folder / shard, metadata={"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][name]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(name.replace(".", r"\."), folder)


def test_own_tensors_of_another_rank(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / OWN)
    name = next(name for name in tensors if name.endswith("down_proj.U"))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, folder / OWN, metadata={"format": "pt"})
    refused("down_proj|shape|size", folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": "red"}, "'colour'"),
        ({"recipe": {"version": 2}}, "version 2 is not 1"),
        ({"recipe": {"colour": "red"}}, "'colour'"),
        ({"recipe": {"units": {"model.layers.0.qkv": {"sparsity": 0.5}}}}, "'linears' is missing"),
        ({"recipe": {"grouping": "heap"}}, "'heap'"),
        ({"recipe": {"model_type": "qwen2"}}, "qwen2"),
        ({"recipe": None}, "object"),
        ({"quant_method": "magic"}, "magic"),
    ],
)
def test_a_quantization_config_that_is_not_ours(folder, change, says):
    quantization = config_of(folder)["quantization_config"]
    for key, value in change.items():
        quantization[key] = {**quantization[key], **value} if isinstance(value, dict) else value
    edit_config(folder, quantization_config=quantization)
    refused(says, folder)


def test_a_recipe_without_thresholds(folder):
    quantization = config_of(folder)["quantization_config"]
    for unit in quantization["recipe"]["units"].values():
        unit["threshold"] = None
    edit_config(folder, quantization_config=quantization)
    refused("lacks thresholds", folder)


@pytest.mark.parametrize(
    ("model_type", "says"), [("phi3", "fused"), ("mixtral", "mixture of experts"), ("t5", "encoder-decoder"), ("opt", "opt")]
)
def test_architectures_that_are_not_there(tmp_path, model_type, says):
    AutoConfig.for_model(model_type).save_pretrained(tmp_path / "model")
    refused(says, tmp_path / "model")


def test_a_model_quantised_by_another_method(tmp_path):
    folder = dense_folder(tmp_path / "model")
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused("quantised with gptq", folder)


def test_unknown_devices_dtypes_and_backends(folder):
    refused("'moon'", folder, device="moon")
    refused("'int3'", folder, dtype="int3")
    refused("'magic'", folder, backend="magic")
    refused("triton", folder, backend="triton")
    if not torch.cuda.is_available():
        refused("cuda", folder, device="cuda")
        refused("cuda:7", folder, device="cuda:7")


def test_a_dense_model_with_an_unknown_backend(tmp_path):
    """An explicit request fails loudly, whatever the model."""
    refused("'magic'", dense_folder(tmp_path / "model"), backend="magic")


def test_a_model_without_a_tokenizer(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    refused("tokenizer", tmp_path / "model")
