"""Tokens that are given, in place of those that a model with random weights would choose."""

from __future__ import annotations

import torch
from torch import Tensor

from rsparse.runtime.fused import Sampler, Sampling


class Forced(Sampler):
    """Chooses greedily, at full cost, and goes on with given tokens [rows, n] instead.

    Left alone, random weights repeat a token or two, and every repeat has the same mask.
    """

    def __init__(self, tokens: Tensor, vocab: int) -> None:
        super().__init__(Sampling(), tokens.shape[0], vocab, tokens.device)
        self._given = tokens.contiguous()
        self._at = torch.zeros(1, dtype=torch.int64, device=tokens.device)

    def begin(self, input_ids: Tensor, attention_mask: Tensor, seed: int) -> None:
        super().begin(input_ids, attention_mask, seed)
        self._at.zero_()

    def choose(self, logits: Tensor) -> Tensor:
        super().choose(logits)
        token = self._given.index_select(1, self._at).squeeze(1)
        self._at += 1
        return token
