"""Tiny random models of every supported architecture, with a tokenizer and text to feed them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 160

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]

# What makes each architecture differ from the others. heads · head_dim is 48 unless said: equal to hidden_size.
_OF_TYPE: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {
        "num_hidden_layers": 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 6,
        "layer_types": _GEMMA_LAYERS,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 6.0,
        "attn_implementation": "eager",  # the other kernels ignore the soft cap
    },
    "gemma3_text": {
        "num_hidden_layers": 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 6,
        "layer_types": _GEMMA_LAYERS,
    },
    "llama": {"tie_word_embeddings": True},
    "mistral": {"head_dim": 12, "sliding_window": 6, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": False},
}


def tiny_model(model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A random causal LM of `model_type` in eval mode; the same for the same arguments.

    Columns of weights differ in norm, norms and biases are away from 0 and 1. A type without an entry here
    gets the common sizes.
    """
    settings = {**_COMMON, **_OF_TYPE.get(model_type, {}), **overrides}
    attention = settings.pop("attn_implementation", None)
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    _randomise(model, seed)
    return model.to(dtype).eval()


@torch.no_grad()
def _randomise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norm weights and biases, from where the architecture starts them
            parameter += 0.3 * noise(*parameter.shape)
        elif parameter is embedding:
            parameter.copy_(0.4 * noise(*parameter.shape))
        else:
            column = torch.exp(0.5 * noise(parameter.shape[1]))
            parameter.copy_(noise(*parameter.shape) * column / parameter.shape[1] ** 0.5)


def token_ids(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Random ids [batch, tokens] without the special ones."""
    return torch.randint(4, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(seed))


_CHAT = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_MERGES = ["th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "the", "ing", "and"]


def tiny_tokenizer(add_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE over ASCII with a few merges; ids stay below VOCABULARY."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ", "ĉ"]  # byte-level BPE's space, newline and tab
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: index for index, token in enumerate([*specials, *letters, *_MERGES])}
    assert len(vocabulary) <= VOCABULARY
    backend = Tokenizer(BPE(vocabulary, [(word[:-1], word[-1]) for word in _MERGES], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=_CHAT,
    )


_WORDS = [
    "the",
    "a",
    "river",
    "stone",
    "and",
    "light",
    "under",
    "walks",
    "in",
    "then",
    "over",
    "bread",
    "her",
    "tower",
    "42",
    "on.",
]


def words(count: int, seed: int = 0) -> str:
    """Pseudo-random prose of `count` words, a line break now and then."""
    rng = random.Random(seed)
    chosen = rng.choices(_WORDS, weights=[1 / (rank + 2) for rank in range(len(_WORDS))], k=count)
    return "".join(word + ("\n" if rng.random() < 0.1 else " ") for word in chosen)


def text_file(tmp_path: Path, words_in_it: int, seed: int = 0) -> Path:
    """A .txt file of that many words, about three tokens each."""
    path = tmp_path / f"text-{words_in_it}-{seed}.txt"
    path.write_text(words(words_in_it, seed), encoding="utf-8")
    return path
