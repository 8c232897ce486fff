"""Turns a TokenPolicy into a row mask for each forward pass, at the model's entry."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RowPolicy:
    """Which rows of the current forward pass are sparse; every sparse linear of a model holds the same one.

    `sparse` is True (all rows), False (none) or a bool [batch, tokens]. `valid` is None or a bool
    [batch, tokens], False on padding. `past` counts the cached tokens before the call. Positions count a sequence's
    own tokens: the sink is the first one that is not padding, on whichever side the padding is.
    """

    def __init__(self, token_policy: TokenPolicy | None = None) -> None:
        self.token_policy = token_policy or TokenPolicy()
        self.sparse: bool | Tensor = True
        self.valid: Tensor | None = None
        self.past = 0
        self._prompt_lengths: Tensor | None = None
        self._lengths: Tensor | None = None
        self._counted: tuple[Tensor | None, int | Tensor] | None = None

    def counted(self, shape: torch.Size) -> tuple[Tensor | None, int | Tensor]:
        """(mask [batch, tokens] or None for all, how many) of the rows of `shape` that are sparse and no padding: what
        measurement counts. Made once a forward pass, for all units."""
        if self._counted is None:
            masks = [mask for mask in (self.sparse, self.valid) if isinstance(mask, Tensor)]
            mask = None if not masks else masks[0] if len(masks) == 1 else masks[0] & masks[1]
            self._counted = mask, shape.numel() if mask is None else mask.sum()
        return self._counted

    def dense_rows(self, shape: torch.Size, device: torch.device) -> Tensor | None:
        """Which rows [batch, tokens] of the call are dense and no padding; None where all are sparse."""
        if self.sparse is True:
            return None
        dense = ~self.sparse if isinstance(self.sparse, Tensor) else torch.ones(shape, dtype=torch.bool, device=device)
        return dense if self.valid is None else dense & self.valid

    def attach(self, model: PreTrainedModel) -> None:
        """Watch the calls of `model`'s decoder stack."""
        self._handle = model.base_model.register_forward_pre_hook(self._before_forward, with_kwargs=True)

    def detach(self) -> None:
        self._handle.remove()

    @contextlib.contextmanager
    def using(
        self, token_policy: TokenPolicy, prompt_lengths: Tensor | None = None, lengths: Tensor | None = None
    ) -> Iterator[None]:
        """Another policy for a while. `prompt_lengths` [batch]: under `decode`, the tokens of each row that
        are prompt, where prompt and continuation come in one call (likelihood tasks). `lengths` [batch]: the
        tokens of each row that are not padding, where that is on the right and comes without an attention mask."""
        before = self.token_policy, self._prompt_lengths, self._lengths
        self.token_policy, self._prompt_lengths, self._lengths = token_policy, prompt_lengths, lengths
        try:
            yield
        finally:
            self.token_policy, self._prompt_lengths, self._lengths = before

    def set_rows(
        self,
        shape: tuple[int, int],
        *,
        past: int = 0,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Decide for a call of `shape` = (batch, tokens) that follows `past` cached tokens."""
        self._counted, self.past = None, past
        tokens = shape[1]
        policy, kind = self.token_policy, self.token_policy.kind
        self.valid = None
        # A causal mask that generate() made ahead, in four dimensions or by layer type, tells no positions.
        mask = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
        if mask is not None:
            # A static cache's mask may be longer than what has been seen so far.
            self.valid = mask[:, past : past + tokens].bool()
        elif self._lengths is not None:
            self.valid = past + torch.arange(tokens, device=self._lengths.device) < self._lengths.unsqueeze(-1)
        elif past == 0:
            self.valid = _seeing_themselves(attention_mask, tokens)
        if kind == "dense" or (kind == "decode" and self._prompt_lengths is None and (past == 0 or tokens > 1)):
            self.sparse = False
            return
        if past > 0 and kind != "decode" and mask is None and position_ids is None and past >= policy.sink_tokens:
            self.sparse = True
            return
        position = self._positions(shape, past, mask, position_ids, device)
        dense = position < policy.sink_tokens
        if kind == "all" and mask is None and position_ids is None:  # known without asking the device
            self.sparse = False if past + tokens <= policy.sink_tokens else ~dense if past < policy.sink_tokens else True
            return
        if kind == "decode" and self._prompt_lengths is not None:
            dense = dense | (position < self._prompt_lengths.to(position.device).unsqueeze(-1))
        if policy.fraction is not None and past == 0:
            lengths = position[:, -1] + 1 if mask is None else mask.sum(-1)
            lengths = lengths if self._lengths is None else self._lengths
            dense_tokens = torch.tensor(
                [[math.floor((1 - policy.fraction) * n + 1e-9)] for n in lengths.tolist()], device=position.device
            )
            dense = dense | (position < dense_tokens)
        self.sparse = True if not bool(dense.any()) else False if bool(dense.all()) else ~dense

    def _positions(
        self, shape: tuple[int, int], past: int, mask: Tensor | None, position_ids: Tensor | None, device: torch.device | None
    ) -> Tensor:
        batch, tokens = shape
        if mask is not None:
            return (mask.long().cumsum(-1) - 1)[:, past : past + tokens].clamp_min(0)
        if position_ids is not None:
            return position_ids.expand(batch, tokens)
        return (past + torch.arange(tokens, device=device)).expand(batch, tokens)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = kwargs.get("input_ids", args[0] if args else None)
        inputs = inputs if inputs is not None else kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        self.set_rows(
            (inputs.shape[0], inputs.shape[1]),
            past=0 if cache is None else int(cache.get_seq_length()),
            attention_mask=kwargs.get("attention_mask"),
            position_ids=kwargs.get("position_ids"),
            device=inputs.device,
        )


def _seeing_themselves(mask: Any, tokens: int) -> Tensor | None:
    """Which of a prompt's tokens are no padding, [batch, tokens], by a causal mask [batch, 1, tokens, keys] or a mapping of
    such by layer type; None where it is neither. Padding attends to nothing, other tokens to themselves in every kind of layer.
    """
    first = next(iter(mask.values()), None) if isinstance(mask, Mapping) else mask
    if not isinstance(first, Tensor) or first.dim() != 4 or first.shape[-2] != tokens or first.shape[-1] < tokens:
        return None
    own = first[:, 0, :, :tokens].diagonal(dim1=-2, dim2=-1)
    return own if own.dtype == torch.bool else own == 0
