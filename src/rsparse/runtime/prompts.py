"""Prompts of any form as padded token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rsparse.errors import RSparseError

Prompt = str | Sequence[int] | Sequence[dict[str, str]]


def encode(tokenizer: Any, prompts: Sequence[Prompt]) -> Any:
    """`input_ids` and `attention_mask` [batch, tokens], padded on the left. Raises RSparseError for an empty prompt."""
    rows = [_ids(tokenizer, prompt) for prompt in prompts]
    if not all(rows):
        raise RSparseError("a prompt is empty; give at least one token")
    longest = max(map(len, rows))
    ids = [[pad_id(tokenizer)] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    from transformers import BatchEncoding

    return BatchEncoding({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})


def pad_id(tokenizer: Any) -> int:
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _ids(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not prompt or isinstance(prompt[0], int):
        return list(prompt)
    if tokenizer.chat_template is None:
        raise RSparseError("this model's tokenizer has no chat template; give a plain prompt")
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # a chat template writes BOS itself
