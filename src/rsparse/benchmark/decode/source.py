"""The models of a decode bench: a shape with random weights, or a real one, dense and at a sparsity."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from rsparse.benchmark.decode import mask_statistics
from rsparse.benchmark.decode.random_sparse import recipe_for, sparsify_random
from rsparse.benchmark.shapes import check_shape, random_model, random_windows
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from rsparse.evaluation.describe import short
from rsparse.sparse_model import densify


class Source(Protocol):
    """Where a bench's model comes from. `config` joins every record."""

    name: str
    config: dict[str, Any]

    def load(self) -> Any:
        """The dense model."""
        ...

    def prompt(self, batch: int, tokens: int) -> Tensor: ...

    def given(self, batch: int, new_tokens: int) -> Tensor | None:
        """Tokens [batch, new] to go on with, None for the model's own."""
        ...

    def sparse(self, sparsity: float, ranks: str) -> contextlib.AbstractContextManager[Any]:
        """The sparse model, for the prompt and tokens asked for before; the dense one is again what it was behind it."""
        ...


class Shape:
    """Random weights of a published shape, with channel gains by which masks overlap from token to token as recorded."""

    def __init__(self, name: str, tokens: int, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        check_shape(name, tokens)
        self.name, self.device, self.dtype, self.seed = name, device, dtype, seed
        statistics = mask_statistics.recorded()
        self._statistics = statistics["0.5"]
        self.config = {
            "model": name,
            "weights": "random",
            "fit": "random",
            "masks": "of the random model's own decode of random tokens, channels spread so that masks overlap as recorded: "
            + statistics["source"],
        }

    def load(self) -> Any:
        self.model = random_model(self.name, self.device, self.dtype, self.seed)
        mask_statistics.spread_channels(self.model, self._statistics, 0.5, self.seed)
        return self.model

    def prompt(self, batch: int, tokens: int) -> Tensor:
        self._prompt = random_windows(self.name, batch, tokens, self.seed).to(self.device)
        return self._prompt

    def given(self, batch: int, new_tokens: int) -> Tensor:
        self._given = random_windows(self.name, batch, new_tokens, self.seed + 1).to(self.device)
        return self._given

    @contextlib.contextmanager
    def sparse(self, sparsity: float, ranks: str) -> Iterator[Any]:
        ids = torch.cat([self._prompt, self._given], 1)
        recipe = recipe_for(self.model, sparsity, ranks)
        sparsify_random(self.model, recipe, ids, self._prompt.shape[1], backend="reference")
        yield from _until_dense(self.model)


class _OnText:
    """A real model, which decodes as it likes behind prompts [n, tokens] of a text. `load` sets `model`."""

    model: Any

    def __init__(self, name: str, load: Callable[[], Any], prompts: Callable[[int], Tensor]) -> None:
        self.name, self._load, self._prompts = short(name), load, prompts
        self.config: dict[str, Any] = {"model": self.name, "masks": "of the model's own decode"}

    def prompt(self, batch: int, tokens: int) -> Tensor:
        return _first_rows(self._prompts(tokens), batch, tokens).to(self.model.device)

    def given(self, batch: int, new_tokens: int) -> None:
        return None


class Real(_OnText):
    """A dense model and its calibration, which makes it sparse."""

    def __init__(self, name: str, load: Callable[[], Any], calibration: Any, prompts: Callable[[int], Tensor]) -> None:
        super().__init__(name, load, prompts)
        self._calibration = calibration

    def load(self) -> Any:
        self.model = self._load()
        return self.model

    @contextlib.contextmanager
    def sparse(self, sparsity: float, ranks: str) -> Iterator[Any]:
        sparsify(self.model, recipe_for(self.model, sparsity, ranks), self._calibration, backend="reference")
        yield from _until_dense(self.model)


class Checkpoint(_OnText):
    """A sparse checkpoint: its recipe is the one cell, its dense form the baseline. `load` makes a new sparse model."""

    def load(self) -> Any:
        self.model = densify(self._load())
        return self.model

    @contextlib.contextmanager
    def sparse(self, sparsity: float, ranks: str) -> Iterator[Any]:
        yield self._load()


def _first_rows(prompts: Tensor, batch: int, tokens: int) -> Tensor:
    if len(prompts) < batch:
        raise RSparseError(f"the text is too short for {batch} prompts of {tokens} tokens")
    return prompts[:batch]


def _until_dense(model: Any) -> Iterator[Any]:
    try:
        yield model
    finally:
        densify(model)
