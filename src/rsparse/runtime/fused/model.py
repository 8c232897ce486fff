"""The packed form of a model and its session, kept as long as the model lives and is what it was."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from rsparse.ops.fused import FusedOps, fused_ops
from rsparse.runtime.fused import layers
from rsparse.runtime.fused.sampling import Sampler, Sampling
from rsparse.runtime.fused.session import Session
from rsparse.sparse_model import is_sparse, recipe_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rsparse.recipe import Recipe

# A cache is made in such lengths, so that the next, longer prompt of a conversation finds its graph captured.
LENGTH_MULTIPLE = 256


class FusedModel:
    """A model's linears packed for the fused ops of `backend`; the model goes on working, on the same storage."""

    def __init__(self, model: PreTrainedModel, backend: str) -> None:
        self.backend = backend
        self.layers = layers.pack(model)
        self._recipe, self._addresses = _recipe(model), _addresses(model)
        self._session: tuple[Sampling, Session] | None = None
        if backend == "triton":
            from rsparse.ops.fused.tune import tune_once

            blocks, head = self.layers.layers, self.layers.lm_head
            others = (group for each in blocks for group in (each.qkv, each.o, each.down))
            tune_once(head.device, others, (each.gate_up for each in blocks), head)

    def is_of(self, model: PreTrainedModel, backend: str) -> bool:
        """Whether `model` is still the one that was packed: recipe, thresholds and storage."""
        same = self._recipe is _recipe(model) and self._addresses == _addresses(model)
        return same and self.backend == backend

    def ops(self) -> FusedOps:
        """New ones: scratch memory belongs to them, and a captured graph to their scratch memory."""
        return fused_ops(self.backend, self.layers.lm_head.device, dense=self._recipe is None)

    def session(self, model: PreTrainedModel, rows: int, tokens: int, sampling: Sampling) -> Session:
        """One that holds `tokens` for each of `rows`; the last one where it serves."""
        if self._session is not None:
            before, session = self._session
            if before == sampling and session.rows == rows and session.max_len >= tokens:
                return session
        self._session = None  # its cache and graph go before others come
        max_len = -(-tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        vocab, device = self.layers.lm_head.shape[0], self.layers.lm_head.device
        session = Session(model, self.layers, self.ops(), Sampler(sampling, rows, vocab, device), max_len)
        self._session = sampling, session
        return session


_FUSED: weakref.WeakKeyDictionary[Any, FusedModel] = weakref.WeakKeyDictionary()


def fused_model(model: PreTrainedModel, backend: str) -> FusedModel:
    """The packed form of `model`, made at first use and again once the model has changed."""
    found = _FUSED.get(model)
    if found is None or not found.is_of(model, backend):
        _FUSED.pop(model, None)
        found = None  # the old storage goes as the new one comes
        found = _FUSED[model] = FusedModel(model, backend)
    return found


def release(model: PreTrainedModel) -> None:
    """Drop the packed form, and give the linears contiguous weights of their own again."""
    if _FUSED.pop(model, None) is not None:
        layers.unpack(model)


def _recipe(model: PreTrainedModel) -> Recipe | None:
    return recipe_state(model).recipe if is_sparse(model) else None


def _addresses(model: PreTrainedModel) -> list[int]:
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
