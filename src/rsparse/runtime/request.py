"""What `generate` was asked, in the form that its paths take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsparse.runtime.text import Ends, Watch
from rsparse.token_policy import TokenPolicy


@dataclass(frozen=True)
class Request:
    """Prompts as `input_ids` and `attention_mask` [batch, tokens] on the model's device, and how to go on.

    A row ends by a token of `eos` or by `ends`, and is padded with `pad` from there on.
    """

    input_ids: Tensor
    attention_mask: Tensor
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    eos: frozenset[int]
    pad: int
    token_policy: TokenPolicy
    ends: Ends
    watch: Watch

    @property
    def rows(self) -> int:
        return self.input_ids.shape[0]


@dataclass(frozen=True)
class Produced:
    """New tokens [batch, new] on the CPU, and seconds to the first of them and from there."""

    tokens: Tensor
    prefill_seconds: float
    decode_seconds: float


class Clock:
    """Seconds since it was made, once the device of `model` has done its work."""

    def __init__(self, model: Any) -> None:
        self._cuda = next(model.parameters()).is_cuda
        self.start = self.now()

    def now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
