"""The fit: it helps, and it touches nothing that is not its own."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import pytest
import torch

from rsparse.compensation import fit as module
from rsparse.compensation.fitted import LEVEL_SCALE
from rsparse.losses import compare, dense_states, hidden_states
from rsparse.sparse_model import state, unit_members
from rsparse.token_policy import TokenPolicy
from tests.compensation.fits import (
    SETTINGS,
    achieved,
    alike,
    contents,
    fitted,
    logits,
    model_of,
    same,
    text,
)
from tests.support.models import tiny_model
from tests.support.recipes import LAYOUTS


@torch.no_grad()
def heldout_kl(model, sinks=1):
    """By another way: all windows at once."""
    heldout = text()[1]
    dense = dense_states(model, heldout)
    with state(model).policy.using(TokenPolicy("all", sink_tokens=sinks)):
        return float(compare(model, heldout, hidden_states(model, heldout), dense).kl.mean())


def a_fit(**changes):
    return module._Fit(model_of(), *text(), dataclasses.replace(SETTINGS, **changes), 1, print)


@pytest.mark.parametrize(
    ("layout", "levels", "factors"),
    [(LAYOUTS[0], True, True), (LAYOUTS[1], True, False), (LAYOUTS[1], False, True), (LAYOUTS[2], True, True)],
)
def test_the_heldout_kl_falls_at_the_same_bytes(layout, levels, factors):
    model = model_of(grouping=layout[0], stacked=layout[1])
    asked = state(model).recipe
    _, result = fitted(model, levels=levels, factors=factors, steps=9, check_every=3)
    assert result.kl < 0.96 * result.before
    assert result.kl == pytest.approx(heldout_kl(model), rel=0.06)  # thresholds were solved more roughly then
    assert [step for step, _ in result.history] == [0, 3, 6, 9]
    assert (result.step, result.kl) == min(result.history, key=lambda each: each[1])
    assert result.history[0] == (0, result.before)
    recipe = state(model).recipe
    assert recipe.sparsity == pytest.approx(asked.sparsity, abs=1e-4)
    assert achieved(model, text()[0])[0] == pytest.approx(asked.sparsity, abs=0.005)
    moved = max(abs(unit.sparsity - asked.units[name].sparsity) for name, unit in recipe.units.items())
    assert (moved > 0.01) if levels else (moved == 0)
    assert recipe.settled
    assert all(unit.compensated for unit in recipe.units.values())
    for name, unit in recipe.units.items():
        changes = {"sparsity": 0.5, "threshold": asked.units[name].threshold, "compensated": False}
        assert dataclasses.replace(unit, **changes) == asked.units[name]
        assert unit.threshold == pytest.approx(float(unit_members(model)[name][0].threshold), rel=1e-6)


def test_before_it_are_zeros_that_the_channels_already_pay_for(done):
    started = a_fit()
    started.prepare()
    started.fitted.settle()
    assert not any(tensor.any() for name, tensor in contents(started.model).items() if name.endswith("compensation"))
    assert done[1].before == pytest.approx(heldout_kl(started.model), rel=1e-5)
    assert done[1].before > 1.02 * heldout_kl(model_of())


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2"])
def test_other_architectures(model_type):
    _, result = fitted(model_of(model_type))
    assert result.kl < 0.95 * result.before


def test_weights_and_dense_answers_are_what_they_were(done):
    model, original = done[0], tiny_model("llama")
    expected = dict(original.named_parameters())
    assert {name for name, _ in model.named_parameters()} == set(expected)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in model.named_parameters())
    with state(model).policy.using(TokenPolicy("dense")):
        assert torch.equal(logits(model), logits(original))


def test_it_is_a_plain_model_again(done):
    model, _ = done
    found, started = state(model), model_of()
    assert found.policy.token_policy == state(started).policy.token_policy
    for members in unit_members(model).values():
        for member in members:
            assert member.ops is found.ops
            assert not member._forward_hooks
            assert not member._forward_pre_hooks
            assert set(member._buffers) == set(unit_members(started)[member.unit][0]._buffers) or member is not members[0]
            for buffer in member._buffers.values():
                assert buffer is None or (buffer.is_leaf and not buffer.requires_grad)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not logits(model).requires_grad


@pytest.mark.parametrize("factors", [False, True])
def test_factors_are_fitted_where_asked(factors):
    model = model_of()
    before = contents(model)
    fitted(model, factors=factors)
    after = contents(model)
    for name, tensor in before.items():
        kind = name.rpartition(".")[2]
        if kind in ("U", "V"):
            assert torch.equal(tensor, after[name]) != factors, name
        elif kind == "compensation":
            assert tensor is None
            assert after[name].count_nonzero() == after[name].numel()


def test_dtypes_stay():
    model = model_of().to(torch.bfloat16)
    _, result = fitted(model)
    assert result.kl < result.before
    for name, tensor in contents(model).items():
        assert tensor is None or tensor.dtype == (torch.float32 if name.endswith("threshold") else torch.bfloat16), name


@pytest.mark.parametrize("sinks", [0, 4])
def test_sinks_stay_dense(sinks):
    model = model_of()
    _, result = fitted(model, sink_tokens=sinks)
    assert achieved(model, text()[0], sinks)[0] == pytest.approx(0.5, abs=0.005)
    assert result.kl == pytest.approx(heldout_kl(model, sinks), rel=0.06)


def test_the_label_says_what_was_done(done):
    assert state(fitted(label="a text, 960 tokens")[0]).recipe.compensation == (
        "a text, 960 tokens: vectors, levels, factors; 6 steps of 96 tokens, seed 0"
    )
    assert state(done[0]).recipe.compensation.startswith("vectors, levels, factors; ")
    model = fitted(levels=False, factors=False, seed=3, steps=3)[0]
    assert state(model).recipe.compensation == "vectors; 3 steps of 96 tokens, seed 3"


def test_a_report_at_each_check():
    reports = []
    _, result = fitted(report=reports.append, steps=5)
    assert [each.step for each in reports] == [2, 4, 5]
    assert [(each.step, each.heldout_kl) for each in reports] == result.history[1:]
    assert all(each.steps == 5 and each.batch_kl > 0 and each.seconds_left >= 0 for each in reports)
    assert reports[-1].seconds_left == 0
    assert result.seconds > 0


def test_the_same_seed_gives_the_same_and_another_another(done):
    again = fitted()
    assert same(contents(again[0]), contents(done[0]))
    assert again[1].history == done[1].history
    assert state(again[0]).recipe == state(done[0]).recipe
    other = fitted(seed=1)
    assert not torch.equal(
        contents(other[0])["model.layers.0.qkv.0.compensation"], contents(done[0])["model.layers.0.qkv.0.compensation"]
    )


def test_a_second_fit_starts_where_the_first_ended():
    model, first = fitted()
    _, second = fitted(model, steps=3)
    assert second.before == pytest.approx(first.kl, rel=0.06)
    assert second.kl <= second.before
    assert state(model).recipe.sparsity == pytest.approx(0.5, abs=1e-4)


def test_the_learning_rate_warms_up_and_ends_near_zero():
    rates = [module._schedule(step, 100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 9 / 100)))
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_on_a_gpu_attention_is_one_whose_backward_adds_in_one_order():
    backends = torch.backends.cuda
    with module._repeatable(torch.device("cuda")):
        found = [backends.math_sdp_enabled(), backends.flash_sdp_enabled(), backends.mem_efficient_sdp_enabled()]
    assert found == [True, False, False]
    with module._repeatable(torch.device("cpu")):
        assert backends.flash_sdp_enabled()


def test_each_step_is_under_it_and_no_look_is(monkeypatch):
    inside, seen = [], []

    @contextlib.contextmanager
    def noted(device):
        inside.append(device)
        yield
        inside.pop()

    def states(model, ids):
        seen.append(len(inside))
        return hidden_states(model, ids)

    monkeypatch.setattr(module, "_repeatable", noted)
    monkeypatch.setattr(module, "hidden_states", states)
    fitted(steps=4, check_every=2)
    assert seen.count(1) == 4
    assert seen.count(0) >= 3  # the looks: before the first step, and two


def test_batches_are_a_function_of_seed_and_step():
    windows, one = text()[0], a_fit(batch_tokens=24 * 6 + 23)
    backwards = {step: one._picked(step) for step in range(6, 0, -1)}
    fresh = a_fit(batch_tokens=24 * 6)
    assert all(fresh._picked(step) == batch for step, batch in backwards.items())
    places = [place for step in range(1, 7) for place in backwards[step]]
    assert sorted(places[:18]) == sorted(places[18:]) == list(range(len(windows)))  # three steps see each window once
    assert places[:18] != places[18:]
    assert a_fit(batch_tokens=24 * 6, seed=1)._picked(1) != backwards[1]


def test_a_batch_larger_than_the_text_takes_windows_again():
    assert len(a_fit(batch_tokens=24 * 100)._picked(1)) == 100


@pytest.mark.parametrize(("steps", "kept"), [(4, False), (5, True)])
def test_dense_states_are_kept_where_windows_come_again(monkeypatch, steps, kept):
    """18 windows, 4 a step: the fifth begins a second pass. The states decide nothing but the time."""
    results = []
    for limit in (1e9, 0):
        monkeypatch.setattr(module, "STATE_BYTES", limit)
        found = []
        prepare = module._Fit.prepare
        monkeypatch.setattr(module._Fit, "prepare", lambda fit, found=found, run=prepare: (run(fit), found.append(fit)))
        results.append(fitted(steps=steps)[1].history)
        monkeypatch.setattr(module._Fit, "prepare", prepare)
        states = found[0].dense_windows
        assert (states is not None) == (kept and limit > 0)
        assert states is None or states.shape == (18, 24, found[0].model.config.hidden_size)
    assert [kl for _, kl in results[0]] == pytest.approx([kl for _, kl in results[1]], rel=1e-5)


def test_making_a_fit_changes_nothing():
    model = model_of()
    before, recipe = contents(model), state(model).recipe
    module._Fit(model, *text(), SETTINGS, 1, print)
    assert same(contents(model), before)
    assert state(model).recipe is recipe


def test_settling_looks_at_windows_from_all_over_the_text(monkeypatch):
    """No more than one batch of them, the only one that `settle` reads."""
    monkeypatch.setattr("rsparse.losses.batch_tokens", lambda model: 5 * 24 + 3)
    monkeypatch.setattr(module, "batch_tokens", lambda model: 5 * 24 + 3)
    fit = a_fit()
    fit.prepare()
    windows = text()[0]
    assert torch.equal(fit.fitted.windows, windows[[0, 4, 8, 13, 17]])
    monkeypatch.setattr(module, "SETTLE_TOKENS", 24 * 2)
    fit = a_fit()
    fit.prepare()
    assert torch.equal(fit.fitted.windows, windows[[0, 17]])


def test_levels_are_in_units_of_a_step(monkeypatch):
    """At a learning rate of 0.005 one step moves a level by no more than 0.002."""
    monkeypatch.setattr(module._Fit, "_heldout_kls", lambda self, step: alike(1.0 - step))
    model = model_of(rho=1.0)
    fitted(model, steps=1, learning_rate=0.5)  # the warm-up's tenth of it
    moved = [unit.sparsity - 0.5 for unit in state(model).recipe.units.values()]
    assert 0.3 * 0.05 * LEVEL_SCALE < max(map(abs, moved)) < 2 * 0.05 * LEVEL_SCALE
