"""Put gated MLPs into a model, in place, and take them out again."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rsparse.calibration.store import Calibration
from rsparse.calibration.windows import spread
from rsparse.errors import RSparseError
from rsparse.gated.mlp import GatedMLP, HeadChoice
from rsparse.gated.parts import BlockParts, attention_heads, block_parts
from rsparse.gated.plan import GatedPlan
from rsparse.gated.rules import rule_class
from rsparse.meter import SparsityMeter
from rsparse.models.stepper import BlockStepper
from rsparse.progress import progress
from rsparse.sparse_model import Measured, SparseState, claim, densify
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BACKENDS = ("auto", "reference")
HEAD_ROLES = ("q", "o")  # what a dropped head's output does not need: k and v are shared, and go into the cache


class GatedState(SparseState):
    """What a model with gated MLPs carries beside its modules."""

    def __init__(self, plan: GatedPlan, parts: list[BlockParts], heads: int) -> None:
        super().__init__()
        self.plan, self.heads = plan, heads
        self.mlps: dict[str, GatedMLP] = {}
        self.choices: dict[str, HeadChoice] = {}
        spares = rule_class(plan.rule).spares
        self._sizes = {each.mlp: each.size("gate", "up", "down") for each in parts}
        self._spared = {each.mlp: each.size(*spares) for each in parts}
        if plan.kept_heads is not None:
            self._sizes |= {each.attention: each.size("q", "k", "v", "o") for each in parts}
            self._spared |= {each.attention: each.size(*HEAD_ROLES) for each in parts}
        self._hooks: list[Any] = []

    @property
    def method(self) -> str:
        return self.plan.method

    @property
    def backend(self) -> str:
        return "reference"

    def config(self) -> dict[str, Any]:
        plan = self.plan
        found: dict[str, Any] = {"method": plan.method, "sparsity": round(plan.sparsity, 6), "rule": plan.rule}
        found |= {"kept_neurons": round(plan.kept, 6), "kept_heads": plan.kept_heads, **plan.options}
        return found | {"recipe_sha": plan.sha(), "calibration": plan.calibration}

    def levels(self) -> dict[str, float]:
        found = {"neurons": round(1 - self.plan.kept, 4)}
        return found if self.plan.kept_heads is None else found | {"heads": round(1 - self.plan.kept_heads / self.heads, 4)}

    def measured(self, model: PreTrainedModel) -> list[Measured]:
        return [*self.mlps.values(), *self.choices.values()]

    def unit_sizes(self) -> dict[str, int]:
        return self._sizes

    def sparsity_by_unit(self, meter: SparsityMeter) -> dict[str, float]:
        kept = {name: meter.kept_share(name) for name in self._sizes}
        return {name: (1 - share) * self._spared[name] / self._sizes[name] for name, share in kept.items() if share is not None}

    def put_back(self, model: PreTrainedModel) -> None:
        for name, module in self.mlps.items():
            module.original.train(module.training)
            model.set_submodule(name, module.original)
        for hook in self._hooks:
            hook.remove()

    def choose_heads(self, each: BlockParts, kept: int) -> None:
        """Mask attention's heads in front of o_proj."""
        self.choices[each.attention] = choice = HeadChoice(each.attention, self.heads, kept, self.policy)
        self._hooks.append(each.linears["o"].register_forward_pre_hook(choice))


def install(
    model: PreTrainedModel,
    plan: GatedPlan,
    calibration: Calibration | None = None,
    *,
    settle_tokens: int,
    backend: str = "auto",
) -> PreTrainedModel:
    """Make `model` what `plan` describes, in place, block by block, and return it.

    Thresholds that the plan lacks are solved on `settle_tokens` of the calibration's windows, with everything before them
    already sparse. On any error the model is dense again.
    """
    if backend not in BACKENDS:
        raise RSparseError(f"method {plan.method} runs by masked dense products alone: backend must be auto, got {backend}")
    if not plan.settled and (calibration is None or settle_tokens == 0):
        raise RSparseError(f"method {plan.method} needs a calibration and settle_tokens above 0: its thresholds are not solved")
    if plan.model_type != model.config.model_type:
        raise RSparseError(f"the plan is for a {plan.model_type} model, and this one is {model.config.model_type}")
    if calibration is not None:
        calibration.check_model(model)
    parts, rule = block_parts(model), rule_class(plan.rule)
    if unknown := sorted(set(plan.thresholds or {}) - {each.mlp for each in parts}):
        raise RSparseError(f"the plan is for another model: it names {unknown[0]}, which this one lacks")
    solved = [each.mlp for each in parts] if plan.thresholds is None or not rule.solves else plan.thresholds
    if missing := [each.mlp for each in parts if each.mlp not in solved]:
        raise RSparseError(f"the plan is for another model: it has no threshold for {missing[0]}")
    if plan.kept_heads is not None and plan.kept_heads > attention_heads(model):
        raise RSparseError(f"the plan keeps {plan.kept_heads} heads, and this model has {attention_heads(model)}")
    state = GatedState(plan, parts, attention_heads(model))
    claim(model, state)
    if rule.watches:
        state.policy.token_policy = TokenPolicy("decode")  # `all` has no prompt
    try:
        with torch.no_grad():
            _install(model, state, parts, calibration if rule.solves and not plan.settled else None, settle_tokens)
    except BaseException:
        densify(model)
        raise
    return model


def _install(
    model: PreTrainedModel, state: GatedState, parts: list[BlockParts], calibration: Calibration | None, settle_tokens: int
) -> None:
    plan, stepper, hidden = state.plan, BlockStepper(model), None
    sinks = calibration.meta.sink_tokens if calibration is not None else 0
    if calibration is not None:
        windows = spread(calibration.windows, settle_tokens // calibration.meta.seq_len)
        state.policy.token_policy = TokenPolicy("all", sink_tokens=sinks)
        hidden = stepper.enter(windows.to(next(model.parameters()).device))
    thresholds: dict[str, float] = {}
    with progress(len(parts), "sparsify", unit="block") as bar:
        # Blocks are called directly from here on, so the row policy keeps what the entry decided: all but the sinks sparse.
        for index, each in enumerate(parts):
            module = _swap(model, state, each)
            if plan.kept_heads is not None and plan.kept_heads < state.heads:
                state.choose_heads(each, plan.kept_heads)
            if hidden is not None:
                with ExitStack() as hooks:
                    if module is not None:
                        hooks.callback(module.register_forward_pre_hook(_solving(thresholds, sinks)).remove)
                    hidden = stepper.run(index, hidden)
            bar.update()
    if calibration is not None:
        state.plan = dataclasses.replace(plan, thresholds=thresholds, calibration=calibration.meta.label)


def _swap(model: PreTrainedModel, state: GatedState, each: BlockParts) -> GatedMLP | None:
    """None where all is kept, and the MLP is its own dense one."""
    plan = state.plan
    rule = rule_class(plan.rule)
    if plan.kept >= 1 and rule.whole_is_dense:
        return None
    mlp = model.get_submodule(each.mlp)
    module = GatedMLP(mlp, each, rule(plan, each.neurons, (plan.thresholds or {}).get(each.mlp)), state.policy)
    model.set_submodule(each.mlp, module)
    state.mlps[each.mlp] = module
    return module


def _solving(thresholds: dict[str, float], sinks: int) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, GatedMLP)
        thresholds[module.unit] = module.settle(args[0][:, sinks:])

    return hook
