"""Models by shape alone, with random weights: what a search costs does not depend on their values."""

from __future__ import annotations

from pathlib import Path
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

    The same for the same seed on one kind of device. Norms and biases are as the architecture starts them. Raises RSparseError
    for one that a CPU's memory does not hold: the system would kill the process without a word.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**SHAPES[name])
    if device.type == "cpu":
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(config, dtype=dtype).num_parameters() * dtype.itemsize
        check_memory(f"a random {name} in {str(dtype).removeprefix('torch.')}", size, _free_memory())
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.dim() > 1:
            parameter.normal_(0, STD, generator=generator)
    model.config.name_or_path = name
    return model.eval()


def check_memory(what: str, size: int, free: int | None) -> None:
    """Raises RSparseError where `what` takes more bytes than are free; None is not known."""
    if free is not None and size > free:
        raise RSparseError(f"{what} takes {size / 1e9:.0f} GB, and {free / 1e9:.0f} GB of memory are free; try --device cuda")


def _free_memory() -> int | None:
    """Bytes that a process can have without swapping, as Linux tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def random_windows(name: str, count: int, tokens: int, seed: int = 0) -> Tensor:
    """Uniform token ids [count, tokens] of its vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SHAPES[name]["vocab_size"], (count, tokens), generator=generator)
