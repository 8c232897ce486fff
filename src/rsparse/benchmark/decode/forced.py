"""Tokens that are given, in place of those that the model would choose."""

from __future__ import annotations

import torch
from torch import Tensor

from rsparse.runtime.fused import Sampler, Sampling
from rsparse.runtime.fused.session import WARM_UP


class Forced(Sampler):
    """Chooses greedily, at full cost, and goes on with given tokens [rows, n] instead, n ≥ WARM_UP.

    For a text's own tokens, and for random weights: left alone they repeat a token or two, and every repeat has the same mask.
    """

    def __init__(self, tokens: Tensor, vocab: int) -> None:
        assert tokens.shape[1] >= WARM_UP, "a session reads the first ones as it warms up"
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
