"""Run a decoder block by block, with the arguments that the model itself would pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse.models.layout import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockStepper:
    """Splits `model(input_ids)` into its entry (embedding, masks, rotary tables) and its blocks.

    Windows are unpadded and of one length, so the arguments depend on the batch size alone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.blocks = blocks(model)
        self._arguments: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    @torch.no_grad()
    def enter(self, input_ids: Tensor) -> Tensor:
        """input_ids: [batch, tokens] → the first block's input [batch, tokens, hidden]."""
        captured: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[Tensor] = []

        def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            first.append(hidden)
            captured.append((args, kwargs))
            return hidden

        for block in self.blocks:
            block.forward = record  # shadows the method; a hook could not keep the block from running
        try:
            self.model.base_model(input_ids=input_ids, use_cache=False)
        finally:
            for block in self.blocks:
                del block.forward
        self._arguments[len(input_ids)] = captured
        return first[0]

    @torch.no_grad()
    def run(self, index: int, hidden: Tensor) -> Tensor:
        """Block `index` on hidden [batch, tokens, hidden], for a batch size that `enter` has seen."""
        args, kwargs = self._arguments[len(hidden)][index]
        out = self.blocks[index](hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out
