"""A name for a model's weights, to stand beside every figure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLES = 4096


def weights_sha(model: PreTrainedModel) -> str:
    """Twelve hex digits over names, shapes and up to 4096 evenly spaced values of each parameter, in fp32.

    Sampled, so that an 8B model takes a second; the same for a dense model and its sparse form.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        flat = tensor.detach().flatten()
        picked = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()[:12]
