"""Keys and values at fixed addresses, filled by the model's own prefill and read by a captured decode step."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from rsparse.sparse_model import is_sparse, state
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KVCache:
    """For each block keys and values [rows, key_value_heads, max_len, head_dim].

    Every block is kept at full length, those with a sliding window too: transformers' rolling layer moves its content in a
    branch of Python, which a captured graph would freeze.
    """

    def __init__(self, blocks: int, rows: int, heads: int, max_len: int, head_dim: int, like: Tensor) -> None:
        self.rows, self.max_len = rows, max_len
        # Zeros: a slot that was never written may be read, with weight zero, by the last tile of a kernel.
        self.keys = [like.new_zeros(rows, heads, max_len, head_dim) for _ in range(blocks)]
        self.values = [like.new_zeros(rows, heads, max_len, head_dim) for _ in range(blocks)]

    @torch.no_grad()
    def prefill(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Run the prompt [rows, tokens], padded on the left, dense; returns the last position's fp32 logits [rows, vocab]."""
        layers = [_PromptLayer(keys, values) for keys, values in zip(self.keys, self.values, strict=True)]
        padded = bool((attention_mask == 0).any())
        positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        dense = state(model).policy.using(TokenPolicy("dense")) if is_sparse(model) else nullcontext()
        with dense:
            outputs: Any = model(
                input_ids=input_ids,
                attention_mask=attention_mask if padded else None,  # without one, attention is told that it is causal
                position_ids=positions,
                past_key_values=Cache(layers=layers),  # type: ignore[arg-type]
                use_cache=True,
                logits_to_keep=1,
            )
        logits: Tensor = outputs.logits[:, -1].float()
        return logits


class _PromptLayer(DynamicLayer):
    """Writes a prompt into fixed storage and attends to the prompt alone; it counts as empty, so a mask covers nothing more."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self._keys, self._values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        tokens = key_states.shape[-2]
        self._keys[:, :, :tokens] = key_states
        self._values[:, :, :tokens] = value_states
        return key_states, value_states
