"""The course of a fit: what its looks at the held-out text make of it."""

from __future__ import annotations

import itertools

import pytest
import torch

from rsparse.compensation import fit as module
from rsparse.sparse_model import state
from tests.compensation.fits import achieved, alike, contents, fitted, same, text


def test_where_nothing_is_better_the_vectors_stay_zero(monkeypatch):
    values = itertools.count(1.0)
    monkeypatch.setattr(module._Fit, "_heldout_kls", lambda self, step: alike(next(values)))
    model, result = fitted()
    assert (result.step, result.kl, result.before) == (0, 1.0, 1.0)
    found = contents(model)
    assert not any(tensor.any() for name, tensor in found.items() if name.endswith("compensation"))
    assert [unit.sparsity for unit in state(model).recipe.units.values()] == pytest.approx([0.5] * 8, abs=1e-6)
    assert achieved(model, text()[0])[0] == pytest.approx(0.5, abs=0.003)


@pytest.mark.parametrize(
    ("kls", "patience", "steps", "kept"),
    [
        ([5, 4, 4.5, 4.6, 1], 2, 6, 2),  # the 1 is never seen
        ([5, 4, 4.5, 3, 3.5, 3, 1], 2, 10, 6),  # an equal one is no better
        ([5, 6, 1], 1, 2, 0),
        ([5, 4, 3, 3.5, 2, 2.5, 2.6], 3, 12, 8),
    ],
)
def test_patience(monkeypatch, kls, patience, steps, kept):
    seen, values = {}, iter(kls)

    def listed(self, step):
        seen[step] = self.fitted.values.detach().clone()
        return alike(next(values))

    fits, finish = [], module._Fit.finish
    monkeypatch.setattr(module._Fit, "_heldout_kls", listed)
    monkeypatch.setattr(module._Fit, "finish", lambda self: fits.append(self) or finish(self))
    _, result = fitted(steps=12, check_every=2, patience=patience)
    assert result.history == [(2 * place, kls[place]) for place in range(steps // 2 + 1)]
    assert (result.step, result.kl) == (kept, kls[kept // 2])
    assert torch.equal(fits[0].fitted.values, seen[kept])
    assert len({tuple(each.tolist()) for each in seen.values()}) == len(seen)


def test_after_a_look_that_finds_it_worse_it_goes_on_from_the_best_at_half_the_rate(monkeypatch):
    """Looks behind steps 2, 4, 6 and 8: 4 is worse than 2, 6, which started from 2, is better, and 8 worse than 6."""
    kls, seen, rates, real = {0: 5.0, 2: 4.0, 4: 4.5, 6: 3.0, 8: 3.1}, {}, {}, module._Fit._step

    def step(self, number, halvings):
        moments = self.optimizer.state.get(self.fitted.values, {})
        seen[number] = [self.fitted.values.detach().clone(), *(each.clone() for each in moments.values())]
        kl = real(self, number, halvings)
        rates[number] = self.optimizer.param_groups[0]["lr"] / module._schedule(number, 10)
        return kl

    monkeypatch.setattr(module._Fit, "_heldout_kls", lambda self, number: alike(kls.get(number, 9.0)))
    monkeypatch.setattr(module._Fit, "_step", step)
    fitted(steps=10, check_every=2, learning_rate=0.08)
    assert rates == pytest.approx({1: 0.08, 2: 0.08, 3: 0.08, 4: 0.08, 5: 0.04, 6: 0.04, 7: 0.04, 8: 0.04, 9: 0.02, 10: 0.02})
    for again, before in ((5, 3), (9, 7)):
        assert all(torch.equal(one, other) for one, other in zip(seen[again], seen[before], strict=True))
    assert not torch.equal(seen[7][0], seen[5][0])
    assert float(seen[7][1]) == 4  # updates of the state that it is


def test_a_look_that_is_higher_by_chance_changes_nothing_but_what_is_kept(monkeypatch):
    """Look 4 lies above look 2 by less than its windows scatter: the steps behind it are those of a fit that never looked."""
    chance = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.1], dtype=torch.float64)
    looks, seen, real = {0: alike(5.0), 2: alike(3.0), 4: alike(3.1) + chance, 6: alike(3.2) + chance}, {}, module._Fit._step

    def step(self, number, halvings):
        kl = real(self, number, halvings)
        seen.setdefault(number, []).append((self.fitted.values.detach().clone(), self.optimizer.param_groups[0]["lr"]))
        return kl

    monkeypatch.setattr(module._Fit, "_heldout_kls", lambda self, number: looks[number])
    monkeypatch.setattr(module._Fit, "_step", step)
    kept = contents(fitted(steps=6, check_every=2)[0])
    monkeypatch.setattr(module._Fit, "_heldout_kls", lambda self, number: alike(9.0 - number))
    falling = contents(fitted(steps=6, check_every=2)[0])
    for one, other in seen.values():
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]
    assert not same(kept, falling)


def test_the_thresholds_are_those_of_the_state_that_it_goes_back_to(monkeypatch):
    settled, kls = [], {0: 5.0, 2: 4.0, 4: 6.0}
    monkeypatch.setattr(module._Fit, "_heldout_kls", lambda self, step: alike(kls[step]))
    real = module._Fit._step
    monkeypatch.setattr(
        module._Fit,
        "_step",
        lambda self, step, halvings: settled.append(self.fitted._settled.log_threshold.clone()) or real(self, step, halvings),
    )
    fits, finish = [], module._Fit.finish
    monkeypatch.setattr(module._Fit, "finish", lambda self: fits.append(self) or finish(self))
    fitted(steps=4, check_every=2)
    assert torch.equal(fits[0].fitted._settled.log_threshold, settled[2])
    assert not torch.equal(settled[2], settled[0])
