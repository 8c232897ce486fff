"""A fit that was interrupted goes on where it stopped, and takes no other fit's state."""

from __future__ import annotations

import contextlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rsparse.compensation import compensate
from rsparse.compensation import fit as module
from rsparse.errors import RSparseError
from rsparse.sparse_model import state
from tests.compensation.fits import (
    SETTINGS,
    StopError,
    alike,
    contents,
    fitted,
    model_of,
    same,
    stopping_at,
    text,
)


@pytest.mark.parametrize(("stop", "factors"), [(2, True), (4, False), (6, True)])
def test_a_resumed_fit_ends_as_one_that_nobody_disturbed(tmp_path, done, stop, factors):
    whole = done if factors else fitted(factors=False)
    path = tmp_path / "new.fit"
    with pytest.raises(StopError):
        fitted(state_file=path, report=stopping_at(stop), factors=factors)
    steps, real = [], module._Fit._step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module._Fit, "_step", lambda self, step, halvings: steps.append(step) or real(self, step, halvings))
        model, result = fitted(state_file=path, factors=factors)
    assert steps == list(range(stop + 1, 7))
    assert same(contents(model), contents(whole[0]))
    assert state(model).recipe == state(whole[0]).recipe
    assert result.history == whole[1].history
    assert (result.before, result.kl, result.step) == (whole[1].before, whole[1].kl, whole[1].step)


@pytest.mark.parametrize(("last", "kept"), [(3.0, 2), (0.5, 6)])
def test_the_best_state_of_before_the_interruption_is_kept_and_gone_on_from(tmp_path, monkeypatch, last, kept):
    kls = {0: 5.0, 2: 1.0, 4: 2.0, 6: last}
    monkeypatch.setattr(module._Fit, "_heldout_kls", lambda self, step: alike(kls[step]))
    whole = fitted()
    with pytest.raises(StopError):
        fitted(state_file=tmp_path / "new.fit", report=stopping_at(4))
    model, result = fitted(state_file=tmp_path / "new.fit")
    assert result.step == kept
    assert same(contents(model), contents(whole[0]))


def test_it_goes_on_from_a_state_that_is_not_the_best(tmp_path, monkeypatch):
    """Look 4 lies above look 2 by chance, look 6 above it for sure: that state is left for the best one, of look 2."""
    chance = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.1], dtype=torch.float64)
    looks = {0: alike(5.0), 2: alike(3.0), 4: alike(3.1) + chance, 6: alike(4.0), 8: alike(2.0)}
    monkeypatch.setattr(module._Fit, "_heldout_kls", lambda self, step: looks[step])
    whole = fitted(steps=8)
    for stop in (4, 6):
        path = tmp_path / f"{stop}.fit"
        with pytest.raises(StopError):
            fitted(steps=8, state_file=path, report=stopping_at(stop))
        model, result = fitted(steps=8, state_file=path)
        assert same(contents(model), contents(whole[0]))
        assert result.history == whole[1].history


def test_patience_counts_across_the_interruption(tmp_path, monkeypatch):
    kls = {0: 5.0, 2: 1.0, 4: 2.0, 6: 3.0}
    monkeypatch.setattr(module._Fit, "_heldout_kls", lambda self, step: alike(kls[step]))
    options = {"state_file": tmp_path / "new.fit", "check_every": 2, "patience": 2}
    with pytest.raises(StopError):
        fitted(report=stopping_at(6), **options)
    monkeypatch.setattr(module._Fit, "_step", lambda self, step, halvings: pytest.fail("went on"))
    assert fitted(**options)[1].history == list(kls.items())


def test_the_state_is_written_at_each_check(tmp_path):
    path = tmp_path / "deep" / "new.fit"
    steps = []

    def report(progress):
        with safe_open(path, framework="pt") as file:
            steps.append((progress.step, file.metadata()["fit"]))
        assert [each.name for each in path.parent.iterdir()] == ["new.fit"]

    _, result = fitted(state_file=path, report=report)
    assert [step for step, _ in steps] == [2, 4, 6]
    assert all(f'"step": {step}' in found for step, found in steps)
    assert result.history == fitted(state_file=path)[1].history  # all done: nothing is left to do


def test_the_bar_counts_steps_from_where_the_fit_goes_on(tmp_path, monkeypatch):
    stopped(tmp_path / "new.fit")
    asked, real, steps = [], module._Fit._step, []

    class Bar(contextlib.nullcontext):
        def __init__(self, total, label, unit, done):
            super().__init__(self)
            asked.append((total, label, unit, done))

        def update(self):
            steps.append("counted")

    monkeypatch.setattr(module, "progress", Bar)
    monkeypatch.setattr(module._Fit, "_step", lambda self, step, halvings: steps.append(step) or real(self, step, halvings))
    fitted(state_file=tmp_path / "new.fit")
    fitted(steps=2)
    assert asked == [(6, "fit", "step", 2), (2, "fit", "step", 0)]
    assert steps == [each for step in (3, 4, 5, 6, 1, 2) for each in (step, "counted")]


def stopped(path, **changes):
    with pytest.raises(StopError):
        fitted(state_file=path, report=stopping_at(2), **changes)
    return path.read_bytes()


OTHERS = {
    "its steps is 6, here it is 13": {"steps": 13},
    "its seed is 0, here it is 1": {"seed": 1},
    "its levels is True, here it is False": {"levels": False},
    "its sink_tokens is 1, here it is 2": {"sink_tokens": 2},
}


@pytest.mark.parametrize(("says", "changes"), OTHERS.items(), ids=[*OTHERS])
def test_another_fits_state(tmp_path, says, changes):
    before = stopped(tmp_path / "new.fit")
    refused_state(tmp_path, f"is the state of another fit: {says}; remove it or finish that one", **changes)
    assert (tmp_path / "new.fit").read_bytes() == before


def refused_state(tmp_path, says, model=None, **changes):
    model = model_of() if model is None else model
    buffers, recipe = contents(model), state(model).recipe
    with pytest.raises(RSparseError, match=says) as caught:
        fitted(model, state_file=tmp_path / "new.fit", **changes)
    assert "new.fit" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(contents(model), buffers)
    assert state(model).recipe is recipe


def test_another_models_state(tmp_path, monkeypatch):
    stopped(tmp_path / "new.fit")
    says = "is the state of another fit"
    weights = model_of()
    with torch.no_grad():
        weights.lm_head.weight[0, 0] += 1
    refused_state(tmp_path, says, weights)
    refused_state(tmp_path, says, model_of(rho=0.8))
    refused_state(tmp_path, says, model_of().to(torch.bfloat16))
    windows, heldout = text()
    for texts in ((windows.flip(0), heldout), (windows, heldout.flip(0))):
        with pytest.raises(RSparseError, match=says):
            compensate(model_of(), *texts, SETTINGS, state_file=tmp_path / "new.fit")


@pytest.mark.parametrize("left", [0, 5, 100, -40])
def test_a_damaged_state(tmp_path, left):
    whole = stopped(tmp_path / "new.fit")
    (tmp_path / "new.fit").write_bytes(whole[:left])
    refused_state(tmp_path, "cannot read .*a fit's state: .*; remove it")


def test_states_that_are_none(tmp_path):
    (tmp_path / "new.fit").write_text("all of my thesis, which is not a fit")
    refused_state(tmp_path, "cannot read")
    save_file({"values": torch.zeros(3)}, tmp_path / "new.fit")
    refused_state(tmp_path, "cannot read")
    names = ("values", "exp_avg", "exp_avg_sq")
    save_file({name: torch.zeros(3) for name in names}, tmp_path / "new.fit")
    refused_state(tmp_path, "cannot read")
    (tmp_path / "new.fit").unlink()
    (tmp_path / "new.fit").mkdir()
    refused_state(tmp_path, "cannot read")
