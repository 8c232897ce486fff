"""Generate text on transformers' static cache, with the prompt dense and what follows sparse."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsparse.errors import RSparseError
from rsparse.models.layout import check_positions
from rsparse.sparse_model import is_sparse, state
from rsparse.token_policy import TokenPolicy


@dataclass(frozen=True)
class GenerationResult:
    """Texts of the new tokens; `token_ids` [batch, new] is padded after each row's end.

    `decode_tokens_per_second` counts all rows' tokens after the first one, which the prefill yields; None
    where no more than one came.
    """

    texts: list[str]
    token_ids: Tensor
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def decode_tokens_per_second(self) -> float | None:
        steps = self.new_tokens - len(self.texts)
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else None


Prompt = str | Sequence[int] | Sequence[dict[str, str]]


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
) -> GenerationResult:
    """Continue each prompt: a string, token ids, or a chat (a list of {role, content}) that the chat template renders.

    temperature 0 is greedy. A row ends with the first of the strings `stop`, which its text still holds. `on_text`
    receives pieces of text as they come, for a single prompt. Raises RSparseError on an empty prompt, on too few
    tokens asked, and on a chat without a chat template.
    """
    _check(prompts, max_new_tokens, temperature, top_p)
    encoded = _encode(tokenizer, prompts).to(next(model.parameters()).device)
    length = encoded["input_ids"].shape[1]
    check_positions(model, length + max_new_tokens, f"{length} prompt tokens and {max_new_tokens} new ones")
    watch = _Watch(tokenizer, on_text if len(prompts) == 1 else None)
    sampling = _sampling(temperature, top_p, ignore_eos)
    ends = _Ends(tokenizer, stop, length, len(prompts))
    if stop:
        sampling["stopping_criteria"] = [ends]
    policy: Any = contextlib.nullcontext()
    if is_sparse(model):
        # By length, not by shape of call: a prompt's last piece may be a single token.
        policy = state(model).policy.using(token_policy or TokenPolicy("decode"), encoded["attention_mask"].sum(1))
    device = next(model.parameters()).device
    with policy, torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=temperature > 0):
        if temperature:
            torch.manual_seed(seed)
        start = time.perf_counter()
        out = model.generate(
            **encoded,
            max_new_tokens=max_new_tokens,
            cache_implementation="static",
            disable_compile=True,
            pad_token_id=_pad(tokenizer),
            streamer=watch if len(prompts) == 1 else None,
            logits_processor=[watch.on_logits],
            **sampling,
        )
        _synchronize(model)
        end = time.perf_counter()
    watch.end()
    new = out[:, length:].cpu()
    eos = _eos_ids(model, ignore_eos)
    counts = [min(_count(row.tolist(), eos), stopped) for row, stopped in zip(new, ends.at(new.shape[1]), strict=True)]
    texts = [tokenizer.decode(row[:count], skip_special_tokens=True) for row, count in zip(new, counts, strict=True)]
    first = watch.first or end
    return GenerationResult(texts, new, int(encoded["attention_mask"].sum()), sum(counts), first - start, end - first)


def _check(prompts: Sequence[Prompt], max_new_tokens: int, temperature: float, top_p: float) -> None:
    if max_new_tokens < 1:
        raise RSparseError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if not (math.isfinite(temperature) and temperature >= 0 and 0 < top_p <= 1):
        raise RSparseError(f"temperature must be 0 or more and top_p in (0, 1], got {temperature} and {top_p}")
    if not prompts:
        raise RSparseError("there is no prompt")


def _sampling(temperature: float, top_p: float, ignore_eos: bool) -> dict[str, Any]:
    """What model.generate() must be told. A checkpoint's own sampling settings would only warn on a greedy run."""
    found: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature:
        found = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    return found | ({"eos_token_id": None} if ignore_eos else {})


def _ids(tokenizer: Any, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if not prompt or isinstance(prompt[0], int):
        return list(prompt)
    if tokenizer.chat_template is None:
        raise RSparseError("this model's tokenizer has no chat template; give a plain prompt")
    text = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # a chat template writes BOS itself


def _encode(tokenizer: Any, prompts: Sequence[Prompt]) -> Any:
    rows = [_ids(tokenizer, prompt) for prompt in prompts]
    if not all(rows):
        raise RSparseError("a prompt is empty; give at least one token")
    longest = max(map(len, rows))
    ids = [[_pad(tokenizer)] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    from transformers import BatchEncoding

    return BatchEncoding({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})


def _pad(tokenizer: Any) -> int:
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _eos_ids(model: Any, ignore_eos: bool) -> set[int]:
    eos = None if ignore_eos else model.generation_config.eos_token_id
    return set() if eos is None else set(eos) if isinstance(eos, list) else {eos}


def _count(row: list[int], eos: set[int]) -> int:
    return next((index + 1 for index, token in enumerate(row) if token in eos), len(row))


def _synchronize(model: Any) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


class _Ends:
    """Notes where each row's new text first holds one of the strings `stop` (transformers' stopping criterion).

    transformers' own also finds strings that begin in the prompt, and reads the whole vocabulary first.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int, rows: int) -> None:
        self.tokenizer, self.stop, self.prompt_length = tokenizer, stop, prompt_length
        self._at: list[int | None] = [None] * rows
        # A token is a byte at least; a few more, since the first ones may lose their space or half a character.
        self._look_back = max((len(text.encode()) for text in stop), default=0) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        tail = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self._look_back) :]
        for row, text in enumerate(self.tokenizer.batch_decode(tail)):
            if self._at[row] is None and any(string in text for string in self.stop):
                self._at[row] = input_ids.shape[1] - self.prompt_length
        return torch.tensor([at is not None for at in self._at], device=input_ids.device)

    def at(self, otherwise: int) -> list[int]:
        """New tokens of each row up to its end, of one without an end `otherwise`."""
        return [otherwise if at is None else at for at in self._at]


class _Watch:
    """Notes when the first token is there, and passes text on as it comes (transformers' streamer protocol)."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.first: float | None = None
        self._ids: list[int] = []
        self._printed = ""
        self._prompt_seen = False

    def on_logits(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.first is None:
            if scores.is_cuda:
                torch.cuda.synchronize()
            self.first = time.perf_counter()
        return scores

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._ids += value.flatten().tolist()
        text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        # A character of several bytes is not whole yet while its text ends in the replacement mark.
        if self.on_text is not None and not text.endswith("\ufffd"):
            self.on_text(text[len(self._printed) :])
            self._printed = text

    def end(self) -> None:
        if self.on_text is not None and self._ids:
            text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
            self.on_text(text[len(self._printed) :])
            self._printed = text
