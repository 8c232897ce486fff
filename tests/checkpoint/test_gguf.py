"""A `.gguf` file is a model: the weights and the tokenizer that transformers' own folder of the same model has."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

import rsparse
from rsparse.errors import RSparseError
from rsparse.sparse_model import is_sparse, state
from tests.support.folders import config_of
from tests.support.models import VOCABULARY, tiny_model, tiny_tokenizer, token_ids, words
from tests.support.recipes import calibration_of, uniform
from tests.support.tolerance import assert_close_rms

IDS = token_ids(2, 20, seed=5)
PARTS = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name):
    """model.layers.1.mlp.up_proj.weight → blk.1.ffn_up.weight"""
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{PARTS[stem]}.weight"
    index, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{PARTS[part]}.weight"


def interleaved(weight, heads):
    """llama.cpp's order of the rows of q and k: the two halves of a head's rotary pairs, taken in turn."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model, half: bool = False) -> Path:
    """`model` (llama) and `tiny_tokenizer()` as llama.cpp's converter would write them; norms are always F32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        if (count := heads.get(name.split(".")[-2])) is not None:
            array = interleaved(array, count)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(array.astype(np.float16) if half and array.ndim > 1 else array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer):
    tokenizer = tiny_tokenizer()
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    tokens += [f"<unused{index}>" for index in range(len(tokens), VOCABULARY)]
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    kinds = [gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * (len(tokens) - 4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_model("llama"))


def load(path, **options):
    return rsparse.from_pretrained(path, device="cpu", **options)


@torch.no_grad()
def logits(model):
    return model(IDS).logits


@torch.no_grad()
def rounded(model):
    """Matrices to what fp16 holds."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(parameter.half())
    return model


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_logits_are_the_originals(tmp_path, tied, half):
    original = tiny_model("llama", tie_word_embeddings=tied)
    model, _ = load(write_gguf(tmp_path / "tiny.gguf", original, half))
    assert not is_sparse(model)
    assert (model.config.model_type, model.config.tie_word_embeddings) == ("llama", tied)
    expected, found = (rounded(original) if half else original).state_dict(), model.state_dict()
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor), name
    # the file holds rms_norm_eps in fp32, so the models differ by the rounding of 1e-6
    assert_close_rms(logits(model), logits(original), torch.float32)


def test_the_tokenizer_is_the_files(file):
    tokenizer = load(file)[1]
    for text in (words(60), "x  y\tz", "the\n\nriver 42 on."):
        assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)


@pytest.mark.parametrize("grouping", ["linear", "group"])
def test_a_sparse_checkpoint_of_it(tmp_path, file, grouping):
    model, tokenizer = load(file)
    rsparse.sparsify(model, uniform(model, 0.5, 0.6, grouping=grouping), calibration_of("llama"))
    rsparse.save_pretrained(model, tmp_path / "sparse", tokenizer)
    assert config_of(tmp_path / "sparse")["quantization_config"]["quant_method"] == "rsparse"  # nothing of gguf
    loaded, again = load(tmp_path / "sparse")
    assert state(loaded).recipe == state(model).recipe
    assert torch.equal(logits(loaded), logits(model))
    assert again("the river")["input_ids"] == tokenizer("the river")["input_ids"]
    rsparse.densify(loaded)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in tiny_model("llama").state_dict().items())


def test_it_is_saved_as_a_plain_dense_model(tmp_path, file):
    model, tokenizer = load(file)
    rsparse.save_pretrained(model, tmp_path / "dense", tokenizer)
    assert "quantization_config" not in config_of(tmp_path / "dense")
    assert torch.equal(logits(load(tmp_path / "dense")[0]), logits(model))


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (0, "not a GGUF file"),
        (3, "not a GGUF file"),
        (10, "cut short"),
        (100, "cut short"),
        (5000, "cut short"),
        (-100, "cut short"),
    ],
)
def test_a_cut_file(tmp_path, file, left, says):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.read_bytes()[:left])
    with pytest.raises(RSparseError, match=rf"tiny\.gguf is .*{says}; copy or make it again") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "tiny.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(RSparseError, match="not a GGUF file"):
        load(tmp_path / "tiny.gguf")


def test_a_whole_file_of_an_unknown_architecture_is_not_called_damaged(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "abacus")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(RSparseError, match="abacus") as caught:
        load(tmp_path / "tiny.gguf")
    assert "damaged" not in str(caught.value)
