"""The next token of each row, chosen on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and where a row ends. temperature 0 is greedy; `penalty` is transformers' repetition_penalty.

    A row is finished by a token of `eos`, and goes on with `pad`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    penalty: float = 1.0
    eos: tuple[int, ...] = ()
    pad: int = 0


class Sampler:
    """Chooses tokens from logits by operations that a CUDA graph may hold: the generator draws anew at each replay.

    `seen` [rows, vocab]: tokens of each row so far, where there is a penalty for them.
    """

    def __init__(self, sampling: Sampling, rows: int, vocab: int, device: torch.device) -> None:
        self.sampling, self.rows = sampling, rows
        self.generator = torch.Generator(device)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)
        self._eos = torch.tensor(sampling.eos, device=device)
        self._noise = torch.empty(rows, vocab, device=device) if sampling.temperature else None
        self.seen = torch.zeros(rows, vocab, dtype=torch.bool, device=device) if sampling.penalty != 1 else None

    def begin(self, input_ids: Tensor, attention_mask: Tensor, seed: int) -> None:
        """Forget what was before, and read the prompt [rows, tokens]."""
        self.generator.manual_seed(seed)
        self.finished.zero_()
        if self.seen is not None:
            # Padding marks what the row's last token marks anyway.
            own = torch.where(attention_mask.bool(), input_ids, input_ids[:, -1:])
            self.seen.zero_().scatter_(1, own, True)

    def choose(self, logits: Tensor) -> Tensor:
        """Tokens [rows] int64 by logits [rows, vocab] fp32; rows that were finished get the pad."""
        scores = logits if self.seen is None else self._penalised(logits)
        token = scores.argmax(-1) if self._noise is None else self._drawn(scores, self._noise)
        if self.sampling.eos:
            token = torch.where(self.finished, self.sampling.pad, token)
            self.finished |= (token.unsqueeze(1) == self._eos).any(1)
        if self.seen is not None:
            self.seen.scatter_(1, token.unsqueeze(1), True)
        return token

    def _penalised(self, logits: Tensor) -> Tensor:
        penalty = self.sampling.penalty
        return torch.where(self.seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)  # type: ignore[arg-type]

    def _drawn(self, scores: Tensor, noise: Tensor) -> Tensor:
        """Of a softmax, by its exponential race: argmax of p / e with e ~ Exp(1) is distributed as p."""
        scores = scores / self.sampling.temperature
        if self.sampling.top_p < 1:
            ascending, order = scores.sort(-1)
            outside = ascending.softmax(-1).cumsum(-1) <= 1 - self.sampling.top_p
            outside[:, -1] = False
            scores = scores.masked_fill(outside.scatter(1, order, outside), float("-inf"))
        return (scores.softmax(-1) / noise.exponential_(generator=self.generator)).argmax(-1)
