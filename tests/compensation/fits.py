"""A small fit that several test files run."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from rsparse.compensation import Compensated, FitSettings, compensate
from rsparse.sparse_model import achieved_sparsity, measuring, state, unit_members
from rsparse.token_policy import TokenPolicy
from tests.support.folders import sparse_model
from tests.support.models import token_ids

SETTINGS = FitSettings(steps=6, batch_tokens=96, learning_rate=0.1, factor_rate=1.0, check_every=2)


IDS = token_ids(3, 20, seed=5)


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    found: Tensor = model(ids).logits
    return found


def text() -> tuple[Tensor, Tensor]:
    """(windows [18, 24], held-out ones [5, 24]) of random tokens: of a small text's few, scores are too few to divide."""
    return token_ids(18, 24, seed=11), token_ids(5, 24, seed=12)


_once = functools.cache(sparse_model)


def model_of(model_type: str = "llama", rho: float = 0.7, **layout: Any) -> Any:
    """A copy of a model that is made sparse once."""
    return copy.deepcopy(_once(model_type, rho, **{"grouping": "group", "stacked": True, **layout}))


def fitted(model: Any = None, settings: FitSettings = SETTINGS, **changes: Any) -> tuple[Any, Compensated]:
    """A model, and what its fit says; `changes` are of the settings or options of `compensate`."""
    model = model_of() if model is None else model
    fields = {field.name for field in dataclasses.fields(FitSettings)}
    settings = dataclasses.replace(settings, **{name: value for name, value in changes.items() if name in fields})
    options = {name: value for name, value in changes.items() if name not in fields}
    return model, compensate(model, *text(), settings, **options)


def contents(model: Any) -> dict[str, Tensor | None]:
    """All that a fit could change, by name, as copies."""
    found = {}
    for name, members in unit_members(model).items():
        for number, member in enumerate(members):
            for key, tensor in member._buffers.items():
                found[f"{name}.{number}.{key}"] = None if tensor is None else tensor.detach().clone()
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether all is equal bit for bit."""
    return list(one) == list(other) and all(
        (a is None) == (b is None) and (a is None or torch.equal(a, b))
        for a, b in zip(one.values(), other.values(), strict=True)
    )


@torch.no_grad()
def achieved(model: Any, windows: Tensor, sink_tokens: int = 1) -> tuple[float, dict[str, float]]:
    """Measured sparsity on `windows`, in total and by unit."""
    with measuring(model) as meter, state(model).policy.using(TokenPolicy("all", sink_tokens=sink_tokens)):
        model(windows)
    return achieved_sparsity(model, meter)


def alike(kl: float) -> Tensor:
    """Held-out windows of one KL: any larger one is worse for sure."""
    return torch.full((5,), kl, dtype=torch.float64)


class StopError(Exception):
    pass


def stopping_at(step):
    def report(progress):
        if progress.step == step:
            raise StopError

    return report
