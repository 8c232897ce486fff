"""TEAL's Algorithm 1 written out: every candidate, the whole block, plain hooks; nothing kept from run to run."""

from __future__ import annotations

import torch

from rsparse.methods._probe import ProbedUnit
from rsparse.models.layout import sites
from rsparse.models.stepper import BlockStepper

STEP, QUARTER, CAP = 0.05, 0.25, 0.95


@torch.no_grad()
def reference_levels(model, calibration, sparsity, criterion, windows, block):
    """Levels of the linears of block `block`, whose input is the dense model's."""
    stepper = BlockStepper(model)
    hidden = stepper.enter(windows)
    for index in range(block):
        hidden = stepper.run(index, hidden)
    units = {}
    for site in sites(model)[block]:
        for name, linear in site.linears.items():
            histogram = calibration.block(block)[site.name].histogram
            units[name] = ProbedUnit.of(name, {name: linear}, 0, criterion, histogram)
    dense = stepper.run(block, hidden)
    first = int(hidden.shape[1] * (1 - QUARTER))
    sinks = calibration.meta.sink_tokens

    def error_at(levels):
        handles = []
        for name, unit in units.items():

            def mask(module, args, unit=unit, level=levels[name]):
                x = args[0]
                score = x.abs().float() if unit.scale is None else x.abs().float() * unit.scale
                keep = score > unit.threshold(level)
                keep[:, :sinks] = True
                return (torch.where(keep, x, 0),)

            if levels[name] > 0:
                handles.append(model.get_submodule(name).register_forward_pre_hook(mask))
        out = stepper.run(block, hidden)
        for handle in handles:
            handle.remove()
        return float((out - dense)[:, first:].norm(dim=1).mean())

    sizes = {name: unit.size for name, unit in units.items()}
    levels = dict.fromkeys(units, 0.0)
    step = STEP * next(iter(sizes.values()))
    while (left := sparsity * sum(sizes.values()) - sum(levels[name] * sizes[name] for name in units)) > 1e-6:
        errors = {}
        for name in units:
            raised = min(step, left, (CAP - levels[name]) * sizes[name])
            if raised > 1e-9:
                errors[name] = (error_at(levels | {name: levels[name] + raised / sizes[name]}), raised / sizes[name])
        best = min(errors, key=lambda name: errors[name][0])
        levels[best] += errors[best][1]
    return levels


def spread(windows, count):
    return windows[torch.linspace(0, len(windows) - 1, count).round().long()]


def untouched(model, before):
    """Nothing of the allocation is left on `model`: weights, hooks, stand-in forwards."""
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def block_total(recipe, block):
    units = [unit for name, unit in recipe.units.items() if f".layers.{block}." in name]
    return sum(unit.sparsity * unit.size for unit in units) / sum(unit.size for unit in units)
