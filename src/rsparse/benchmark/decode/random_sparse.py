"""A model of random weights made sparse: budgets as asked, thresholds solved on its own decode, factors random."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse.calibration.histogram import solve_threshold
from rsparse.models.layout import sites, unit_shapes
from rsparse.models.stepper import BlockStepper
from rsparse.progress import progress
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import begin, install_unit, set_thresholds, state
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FACTOR_STD = 0.02
# Where searched recipes put their low rank: in what is read by q, k and v, and here and there in o.
RANK_RHO = 0.95
RANK_EVERY_O = 4


def recipe_for(model: PreTrainedModel, sparsity: float, ranks: str) -> Recipe:
    """Groups at one sparsity. `ranks` `none`: rank 0; `quarter`: rho 0.95 in all q/k/v and each fourth o, 31 % of the units."""
    units = {}
    for name, (linears, in_features) in unit_shapes(model, "group").items():
        kind, block = name.rpartition(".")[2], int(name.split(".")[-2])
        low_rank = ranks == "quarter" and (kind == "qkv" or (kind == "o" and block % RANK_EVERY_O == 0))
        rho, criterion = (RANK_RHO, "paper") if low_rank else (1.0, "magnitude")
        units[name] = UnitRecipe.uniform(linears, in_features, sparsity, rho, criterion=criterion, stacked=True)
    method = "rsparse" if ranks == "quarter" else "sparse_only"
    return Recipe(model.config.model_type, units, method=method, grouping="group")


@torch.no_grad()
def sparsify_random(model: PreTrainedModel, recipe: Recipe, ids: Tensor, prompt_tokens: int, backend: str = "auto") -> None:
    """Make `model` sparse in place as `recipe`, of groups with stacked factors, says.

    Factors are random and small. Each threshold keeps the asked share over the tokens of ids [batch, tokens] behind the
    prompt's, with everything before it sparse and the prompt dense: what a decode of these ids does.
    """
    begin(model, recipe, backend)
    generator = torch.Generator(model.device).manual_seed(0)
    thresholds: dict[str, float] = {}
    stepper, policy = BlockStepper(model), state(model).policy
    with policy.using(TokenPolicy("decode"), torch.full((len(ids),), prompt_tokens)):
        hidden = stepper.enter(ids)
        layout = sites(model)
        with progress(len(layout), "sparsify", unit="block") as bar:
            for index, block_sites in enumerate(layout):
                with ExitStack() as hooks:
                    for site in block_sites:
                        unit = recipe.units[site.name]
                        members = _installed(model, site.name, unit, generator)
                        hook = _settler(site.name, members, unit.kept_share, prompt_tokens, thresholds)
                        hooks.callback(members[0].register_forward_pre_hook(hook).remove)
                    hidden = stepper.run(index, hidden)
                bar.update()
    set_thresholds(model, thresholds)


def _installed(model: PreTrainedModel, name: str, unit: UnitRecipe, generator: torch.Generator) -> list[RSparseLinear]:
    members = install_unit(model, name, unit, scaled=unit.criterion != "magnitude")
    for member in members:
        for factor in (member._buffers.get("U"), member._buffers.get("V")):
            if factor is not None:
                factor.normal_(0, FACTOR_STD, generator=generator)
    if members[0].channel_scale is not None:
        members[0].channel_scale.copy_(torch.stack([m.weight.float().square().sum(0) for m in members]).sum(0).sqrt())
    return members


def _settler(name: str, members: list[RSparseLinear], share: float, prompt_tokens: int, thresholds: dict[str, float]) -> Any:
    def settle(module: Any, args: tuple[Tensor, ...]) -> None:
        thresholds[name] = solve_threshold(args[0][:, prompt_tokens:].flatten(0, 1), members[0].channel_scale, share)
        members[0].threshold.fill_(thresholds[name])

    return settle
