"""Generate by the fused decode step: one graph launch a token, and a look at the tokens every few."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsparse.runtime.fused import Session
from rsparse.runtime.request import Clock, Produced, Request


def run(model: Any, request: Request, session: Session) -> Produced:
    """Prompt and new tokens of `request`, until every row has ended."""
    ends = _RowEnds(request)
    clock = Clock(model)
    session.begin(model, request.input_ids, request.attention_mask, request.seed)
    first = clock.now()
    pieces: list[Tensor] = []
    for piece in session.tokens(request.max_new_tokens):
        pieces.append(piece)
        if ends.see(piece):
            break
    end = clock.now()
    return Produced(ends.padded(torch.cat(pieces, 1)), first - clock.start, end - first)


class _RowEnds:
    """Follows the new tokens: streams those of a single row, and knows where each row ends."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._ids = request.input_ids.cpu()
        self._at: list[int | None] = [None] * request.rows
        self._seen = 0
        request.watch.put(self._ids)

    def see(self, piece: Tensor) -> bool:
        """Take the next tokens [rows, n]; True once every row has ended."""
        request = self.request
        for column in piece.unbind(1):
            self._seen += 1
            if request.rows == 1:
                request.watch.put(column)
            stopped = [False] * request.rows
            if request.ends.stop:
                self._ids = torch.cat([self._ids, column.unsqueeze(1)], 1)
                stopped = request.ends(self._ids, None).tolist()
            for row, token in enumerate(column.tolist()):
                if self._at[row] is None and (stopped[row] or token in request.eos):
                    self._at[row] = self._seen
            if None not in self._at:
                return True
        return False

    def padded(self, tokens: Tensor) -> Tensor:
        """tokens [rows, n] up to the longest row's end, each row's rest the pad."""
        ends = torch.tensor([self._seen if at is None else at for at in self._at]).unsqueeze(1)
        tokens = tokens[:, : int(ends.max())]
        return torch.where(torch.arange(tokens.shape[1]) < ends, tokens, self.request.pad)
