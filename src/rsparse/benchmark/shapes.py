"""Models by shape alone, with random weights: what a search costs does not depend on their values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse.errors import RSparseError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STD = 0.02  # of every weight matrix, as in these architectures' own initialisation

# transformers configurations as published with the models; `tiny-llama` is for tests.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "llama-3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    },
    "gemma-7b": {
        "model_type": "gemma",
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    "tiny-llama": {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "vocab_size": 160,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
}


def check_shape(name: str, tokens: int) -> None:
    """Raises RSparseError for a shape without an entry, and for windows of more `tokens` than its positions."""
    if name not in SHAPES:
        raise RSparseError(f"shape {name!r} is unknown; choose one of {', '.join(SHAPES)}")
    positions = SHAPES[name]["max_position_embeddings"]
    if not 2 <= tokens <= positions:
        raise RSparseError(f"windows of {name} must have from 2 to {positions} tokens, got {tokens}")


@torch.no_grad()
def random_model(name: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """The model of shape `name` in eval mode, its matrices of N(0, STD²), made on `device` in `dtype` and nowhere else.

    The same for the same seed on one kind of device. Norms and biases are as the architecture starts them.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**SHAPES[name])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.dim() > 1:
            parameter.normal_(0, STD, generator=generator)
    model.config.name_or_path = name
    return model.eval()


def random_windows(name: str, count: int, tokens: int, seed: int = 0) -> Tensor:
    """Uniform token ids [count, tokens] of its vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SHAPES[name]["vocab_size"], (count, tokens), generator=generator)
