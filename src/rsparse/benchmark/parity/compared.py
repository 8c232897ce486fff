"""Logits of a decode step beside those of the model's own modules, compared on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from rsparse.benchmark.decode.forced import Forced
from rsparse.benchmark.parity.imposed import ImposedMasks


class Compared(Forced):
    """Goes on with tokens [1, n] and notes how far each token's logits are from `expected` [n, vocab] fp32.

    notes: fp32 [3, n], −log p of the token, KL(expected ‖ found) and the largest difference of a logit. All of it is at fixed
    addresses, so a captured step serves one window after the other.
    """

    def __init__(self, tokens: Tensor, expected: Tensor, masks: ImposedMasks | None = None) -> None:
        super().__init__(tokens, expected.shape[1])
        self.notes = expected.new_zeros(3, len(expected))
        self._expected, self._masks = expected, masks

    def choose(self, logits: Tensor) -> Tensor:
        at = self._at.clone()
        token = super().choose(logits)
        expected = self._expected.index_select(0, at)
        one, other = expected.log_softmax(-1), logits.log_softmax(-1)
        nll = -other.gather(1, token.unsqueeze(1))
        kl = (one.exp() * (one - other)).sum(-1, keepdim=True)
        apart = (logits - expected).abs().amax(-1, keepdim=True)
        self.notes.index_copy_(1, at, torch.cat([nll, kl, apart]))
        if self._masks is not None:
            self._masks.impose(at)  # those of the token that was chosen, which the next step reads
        return token
