"""Thresholds solved again under the model as it is: the asked share is kept, block after block."""

from __future__ import annotations

import pytest
import torch

from rsparse.settle import settle, settle_roughly
from rsparse.sparse_model import measuring, set_thresholds, state, unit_members
from rsparse.token_policy import TokenPolicy
from tests.support.folders import sparse_model
from tests.support.models import token_ids
from tests.support.recipes import LAYOUTS

SINKS = 1


@pytest.fixture
def windows():
    """Random tokens: of a small text's few, the first unit's scores are too few to divide."""
    return token_ids(40, 24)


def unsettled(**layout):
    """Thresholds of 0: what a unit keeps, and what it hands to the next, is far from what the recipe asks."""
    model = sparse_model("llama", 0.7, **layout)
    set_thresholds(model, dict.fromkeys(unit_members(model), 0.0))
    return model


@torch.no_grad()
def kept(model, windows, sinks=SINKS):
    with measuring(model) as meter, state(model).policy.using(TokenPolicy("all", sink_tokens=sinks)):
        model(windows)
    return {name: meter.kept_share(name) for name in unit_members(model)}


def asked(model):
    return {name: unit.kept_share for name, unit in state(model).recipe.units.items()}


@pytest.mark.parametrize("criterion", ["magnitude", "column_norm"])
@pytest.mark.parametrize(("grouping", "stacked"), LAYOUTS)
def test_each_unit_keeps_its_share(windows, grouping, stacked, criterion):
    model = unsettled(grouping=grouping, stacked=stacked, criterion=criterion)
    assert max(kept(model, windows).values()) > 0.99
    settle(model, windows, SINKS)
    found = kept(model, windows)
    assert found == pytest.approx(asked(model), abs=0.003)
    recipe = state(model).recipe
    for name, members in unit_members(model).items():
        assert recipe.units[name].threshold == pytest.approx(float(members[0].threshold), rel=1e-6)
        assert members[0].threshold.dtype == torch.float32


def test_one_unit_is_solved_under_the_sparsity_of_those_before_it(windows):
    """The last unit's threshold moves when the first one's share does."""
    model = unsettled()
    shares = asked(model)
    first, last = next(iter(shares)), list(shares)[-1]
    settle(model, windows, SINKS, shares)
    before = state(model).recipe
    settle(model, windows, SINKS, {**shares, first: 0.02})
    after = state(model).recipe
    assert kept(model, windows) == pytest.approx({**shares, first: 0.02}, abs=0.003)
    assert abs(after.units[last].threshold / before.units[last].threshold - 1) > 0.001
    assert asked(model) == shares  # the recipe's budget is not its business


@pytest.mark.parametrize("sinks", [0, 5])
def test_sinks_do_not_count(windows, sinks):
    model = unsettled()
    settle(model, windows, sinks)
    assert kept(model, windows, sinks) == pytest.approx(asked(model), abs=0.003)
    thresholds = [unit.threshold for unit in state(model).recipe.units.values()]
    settle(model, windows, 3)
    assert [unit.threshold for unit in state(model).recipe.units.values()] != thresholds


def test_only_the_named_units_are_solved(windows):
    model = unsettled()
    name = "model.layers.1.mlp.up_proj"
    settle(model, windows, SINKS, {name: 0.25})
    found = kept(model, windows)
    assert found.pop(name) == pytest.approx(0.25, abs=0.003)
    assert min(found.values()) > 0.99


def test_one_batch_is_all_that_it_reads(windows, monkeypatch):
    monkeypatch.setattr("rsparse.losses.batch_tokens", lambda model: 5 * 24)
    some, all_of_them = unsettled(), unsettled()
    settle(some, windows[:5], SINKS)
    settle(all_of_them, windows, SINKS)
    assert state(some).recipe == state(all_of_them).recipe


def test_it_leaves_no_hooks_and_no_policy(windows):
    model = unsettled()
    policy = state(model).policy.token_policy
    with pytest.raises(IndexError):
        settle(model, windows[:, :1], SINKS)  # no row is left
    settle(model, windows, SINKS)
    settle_roughly(model, windows, SINKS, asked(model))
    assert state(model).policy.token_policy is policy
    assert not any(member._forward_pre_hooks for members in unit_members(model).values() for member in members)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("grouping", "stacked"), LAYOUTS)
def test_roughly(windows, grouping, stacked, dtype):
    model = unsettled(grouping=grouping, stacked=stacked, criterion="column_norm").to(dtype)
    recipe = state(model).recipe
    shares = {name: 0.1 + 0.8 * number / len(recipe.units) for number, name in enumerate(recipe.units)}
    found = settle_roughly(model, windows, SINKS, shares)
    assert state(model).recipe == recipe
    assert kept(model, windows) == pytest.approx(shares, abs=0.005)
    for name, members in unit_members(model).items():
        assert members[0].threshold.shape == ()
        assert float(members[0].threshold) == pytest.approx(float(found[name].log_threshold.exp()), rel=1e-6)


def test_the_slope_is_that_of_the_quantiles(windows):
    """d(log t)/d(sparsity), against quantiles of the very scores, 0.02 on either side; nothing before the unit moves."""
    model = sparse_model("llama", 1.0, criterion="column_norm")
    inputs = {}
    hooks = [
        members[0].register_forward_hook(lambda module, args, out: inputs.update({module.unit: args[0][:, SINKS:]}))
        for members in unit_members(model).values()
    ]
    shares = dict.fromkeys(unit_members(model), 0.4)
    found = settle_roughly(model, windows, SINKS, shares)
    for hook in hooks:
        hook.remove()
    for name, rough in found.items():
        scores = (inputs[name].abs() * unit_members(model)[name][0].channel_scale).flatten().double()
        low, middle, high = scores.quantile(torch.tensor([0.58, 0.6, 0.62]).double()).log()
        assert float(rough.log_threshold) == pytest.approx(float(middle), abs=0.01)
        assert float(rough.slope) == pytest.approx(float(high - low) / 0.04, rel=0.1)
        assert rough.slope > 0


@pytest.mark.parametrize("share", [0.0, 0.005, 0.995, 1.0])
def test_shares_at_the_edge_are_finite(windows, share):
    model = unsettled()
    found = settle_roughly(model, windows, SINKS, dict.fromkeys(unit_members(model), share))
    assert all(value.isfinite() for rough in found.values() for value in rough)
    assert all(value == pytest.approx(share, abs=0.005) for value in kept(model, windows).values())
    settle(model, windows, SINKS, dict.fromkeys(unit_members(model), share))
    assert all(value == pytest.approx(share, abs=0.003) for value in kept(model, windows).values())
