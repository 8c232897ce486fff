"""A second implementation of a sparse model, by hooks on the dense one: y = W(m⊙x) + U Vᵀ((1−m)⊙x) + b."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsparse.recipe import Recipe, UnitRecipe

Factors = dict[str, tuple[Tensor, Tensor]]


def factors_of(sparse_model: Any) -> Factors:
    """U and V by linear, of the linears that have them."""
    named = sparse_model.named_modules()
    return {name: (module.U, module.V) for name, module in named if getattr(module, "U", None) is not None}


@torch.no_grad()
def scale_of(dense_model: Any, unit: UnitRecipe) -> Tensor | None:
    """c of the criteria that need no residual."""
    stacked = torch.cat([dense_model.get_submodule(name).weight for name in unit.linears]).float()
    if unit.criterion == "column_norm" or (unit.criterion == "paper" and unit.rank):
        return torch.linalg.vector_norm(stacked, dim=0)
    assert unit.criterion in ("magnitude", "paper")
    return None


@torch.no_grad()
def run_formula(
    dense_model: Any, recipe: Recipe, factors: Factors, ids: Tensor, sinks: int = 1
) -> tuple[Tensor, dict[str, float]]:
    """Logits, and the share of channels that each linear's sparse rows kept. The first `sinks` tokens are dense."""
    kept: dict[str, float] = {}
    handles = []

    def attach(name: str, threshold: Tensor, c: Tensor | None) -> None:
        linear = dense_model.get_submodule(name)

        def instead(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = args[0]  # [batch, tokens, in]
            score = x.abs().float()
            m = (score if c is None else score * c) > threshold
            kept[name] = float(m[:, sinks:].double().mean())
            m[:, :sinks] = True
            y = F.linear(x * m, module.weight, module.bias)
            if name in factors:
                U, V = factors[name]
                y = y + (x * ~m) @ V @ U.T
            return y

        handles.append(linear.register_forward_hook(instead))

    for unit in recipe.units.values():
        if unit.kept_share < 1:
            for name in unit.linears:
                attach(name, torch.tensor(unit.threshold, dtype=torch.float32), scale_of(dense_model, unit))
    try:
        logits: Tensor = dense_model(ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, kept
