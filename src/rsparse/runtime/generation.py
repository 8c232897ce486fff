"""Generate text with the prompt dense and what follows sparse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsparse.errors import RSparseError
from rsparse.models.layout import check_positions
from rsparse.runtime import modules, steps
from rsparse.runtime.path import session_for
from rsparse.runtime.prompts import Prompt, encode, pad_id
from rsparse.runtime.request import Request
from rsparse.runtime.text import Ends, Watch
from rsparse.token_policy import TokenPolicy


@dataclass(frozen=True)
class GenerationResult:
    """Texts of the new tokens; `token_ids` [batch, new] is padded after each row's end.

    `decode_tokens_per_second` counts all rows' tokens after the first one, which the prefill yields; None
    where no more than one came. `backend` is what ran the new tokens: `modules`, the model's own, or the fused ops' name.
    """

    texts: list[str]
    token_ids: Tensor
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    backend: str = "modules"

    @property
    def decode_tokens_per_second(self) -> float | None:
        steps = self.new_tokens - len(self.texts)
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else None


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    ignore_eos: bool = False,
    token_policy: TokenPolicy | None = None,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
    backend: str = "auto",
) -> GenerationResult:
    """Continue each prompt: a string, token ids, or a chat (a list of {role, content}) that the chat template renders.

    temperature 0 is greedy. A row ends with the first of the strings `stop`, which its text still holds. `on_text`
    receives pieces of text as they come, for a single prompt. With `backend` `auto` new tokens run by the kernels on a GPU
    where these cover the model and the call, and stderr says why they do not; named, they must. Raises RSparseError on an
    empty prompt, on too few tokens asked, on a chat without a chat template, and for kernels that do not cover what is asked.
    """
    _check(prompts, max_new_tokens, temperature, top_p)
    encoded = encode(tokenizer, prompts).to(next(model.parameters()).device)
    length = encoded["input_ids"].shape[1]
    check_positions(model, length + max_new_tokens, f"{length} prompt tokens and {max_new_tokens} new ones")
    request = Request(
        encoded["input_ids"], encoded["attention_mask"], max_new_tokens, temperature, top_p, seed,
        eos=_eos_ids(model, ignore_eos), pad=pad_id(tokenizer), token_policy=token_policy or TokenPolicy("decode"),
        ends=Ends(tokenizer, stop, length, len(prompts)), watch=Watch(tokenizer, on_text if len(prompts) == 1 else None),
    )  # fmt: skip
    session = session_for(model, request, backend)
    produced = modules.run(model, request) if session is None else steps.run(model, request, session)
    request.watch.end()
    new = produced.tokens
    stopped = request.ends.at(new.shape[1])
    counts = [min(_count(row.tolist(), request.eos), at) for row, at in zip(new, stopped, strict=True)]
    texts = [tokenizer.decode(row[:count], skip_special_tokens=True) for row, count in zip(new, counts, strict=True)]
    return GenerationResult(
        texts, new, int(encoded["attention_mask"].sum()), sum(counts),
        produced.prefill_seconds, produced.decode_seconds, "modules" if session is None else session.step.ops.name,
    )  # fmt: skip


def _check(prompts: Sequence[Prompt], max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1:
        raise RSparseError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not (math.isfinite(temperature) and temperature >= 0 and 0 < top_p <= 1):
        raise RSparseError(f"temperature must be 0 or more and top_p in (0, 1], got {temperature} and {top_p}")
    if not prompts:
        raise RSparseError("there is no prompt")


def _eos_ids(model: Any, ignore_eos: bool) -> frozenset[int]:
    eos = None if ignore_eos else model.generation_config.eos_token_id
    return frozenset() if eos is None else frozenset(eos if isinstance(eos, list) else [eos])


def _count(row: list[int], eos: frozenset[int]) -> int:
    return next((index + 1 for index, token in enumerate(row) if token in eos), len(row))
