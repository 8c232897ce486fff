"""What a fit changes as one vector: where its pieces go, and what its levels may do."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rsparse.compensation import fit as module
from rsparse.compensation.fitted import LEAST, LEVEL_SCALE, MOST, FittedVector
from rsparse.compensation.trainable import BACKEND
from rsparse.losses import hidden_states
from rsparse.sparse_model import replace_units, state, unit_members
from rsparse.token_policy import TokenPolicy
from tests.compensation.fits import SETTINGS, achieved, model_of, text
from tests.support.recipes import LAYOUTS, with_vectors
from tests.support.tolerance import assert_close_rms, relative_rms


def vector(model=None, **changes):
    """A model of zeros for vectors, and its FittedVector."""
    model = model_of() if model is None else model
    model.requires_grad_(False)
    module._mark_compensated(model)
    return model, FittedVector(model, text()[0], 1, dataclasses.replace(SETTINGS, **changes))


def members_of(model):
    return [member for members in unit_members(model).values() for member in members]


def scatter(fitted, seed=0, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        fitted.values += size * torch.randn(fitted.values.shape, generator=generator)


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("levels", [False, True])
@pytest.mark.parametrize(("grouping", "stacked"), LAYOUTS)
def test_bind_puts_scale_times_piece(grouping, stacked, levels, factors):
    model, fitted = vector(model_of(grouping=grouping, stacked=stacked), levels=levels, factors=factors)
    before = {member: (member.U, member.V) for member in members_of(model)}
    fitted.settle()
    scatter(fitted)
    fitted.bind()
    rest, shared = fitted.values.detach(), 0
    for members in unit_members(model).values():
        for member in members:
            for name in ("compensation", "U", "V") if factors else ("compensation",):
                if name not in member._buffers or member._buffers[name] is None:
                    shared += 1
                    continue
                found, start = getattr(member, name), {"U": before[member][0], "V": before[member][1]}.get(name)
                piece, rest = rest[: found.numel()].view(found.shape), rest[found.numel() :]
                scale = next(part.scale for part in fitted.parts if part.module is member and part.name == name)
                assert torch.equal(found, piece * scale)
                assert found.requires_grad
                if start is not None:
                    assert float(scale) == pytest.approx(float(start.square().mean().sqrt()), rel=1e-5)
                    assert 0.03 < relative_rms(found.detach(), start) < 0.3
    assert shared == (6 if factors and grouping == "group" and stacked else 0)  # k, v and up read the V of q and gate
    names = list(unit_members(model)) if levels else []
    assert fitted.level_names == names
    assert len(rest) == len(names)
    if not factors:
        assert all(member.U is before[member][0] and member.V is before[member][1] for member in members_of(model))


def test_a_vectors_scale_is_its_channels_spread_over_the_tokens_behind_the_sinks():
    model, outputs = model_of(), {}
    hooks = [
        member.register_forward_hook(lambda linear, args, out: outputs.update({linear: out})) for member in members_of(model)
    ]
    with torch.no_grad():
        hidden_states(model, text()[0])
    for hook in hooks:
        hook.remove()
    _, fitted = vector(model)
    scales = {part.module: part.scale for part in fitted.parts if part.name == "compensation"}
    assert set(scales) == set(outputs)
    for linear, out in outputs.items():
        rows = out[:, 1:].reshape(-1, out.shape[-1])
        expected = (rows - rows.mean(0)).square().sum(0).div(len(rows) - 1).sqrt()
        assert_close_rms(scales[linear], expected, torch.float32)
        assert expected.max() > 1.5 * expected.min()


def test_factors_move_at_a_multiple_of_the_rate():
    """A scale is a step's length; what a part starts as does not change."""
    found = [vector(with_vectors(model_of()), factor_rate=rate)[1].parts for rate in (1.0, 3.0)]
    for one, three in zip(*found, strict=True):
        torch.testing.assert_close(three.scale, one.scale if one.name == "compensation" else 3 * one.scale)
        torch.testing.assert_close(three.start * three.scale, one.start * one.scale)
    assert {part.name for part in found[0]} == {"compensation", "U", "V"}


def test_a_channel_that_never_moves_has_a_scale_too():
    model = model_of(rho=1.0)
    member = members_of(model)[0]
    with torch.no_grad():
        member.weight[3] = 0
    _, fitted = vector(model)
    scale = fitted.parts[0].scale
    assert fitted.parts[0].module is member
    assert 0 < float(scale[3]) < 0.01 * float(scale.mean())


def test_it_starts_as_the_model_is():
    model = with_vectors(model_of())
    before = [(member.compensation, member.U, member.V) for member in members_of(model)]
    _, fitted = vector(model)
    fitted.settle()
    fitted.bind()
    for member, (compensation, U, V) in zip(members_of(model), before, strict=True):
        assert_close_rms(member.compensation.detach(), compensation, torch.float32)
        assert_close_rms(member.U.detach(), U, torch.float32)
        assert_close_rms(member.V.detach(), V, torch.float32)
    recipe = state(model).recipe
    assert fitted.sparsities() == pytest.approx({name: unit.sparsity for name, unit in recipe.units.items()}, abs=1e-6)


def test_the_vector_gets_the_gradient_of_all_its_pieces():
    model, fitted = vector()
    fitted.settle()
    ops = state(model).ops
    with fitted.trainable(), state(model).policy.using(TokenPolicy("all")):
        assert all(member.ops is BACKEND for member in members_of(model))
        fitted.bind()
        hidden_states(model, text()[0][:4]).square().sum().backward()
    assert all(member.ops is ops for member in members_of(model))
    assert fitted.values.grad.isfinite().all()
    for piece in fitted.values.grad.split([*(part.start.numel() for part in fitted.parts), len(fitted.level_names)]):
        assert piece.count_nonzero() > 0.9 * piece.numel()


def test_trainable_ends_with_its_block():
    model, fitted = vector()
    ops = state(model).ops
    with pytest.raises(ValueError, match="stop"), fitted.trainable():
        raise ValueError("stop")
    assert all(member.ops is ops for member in members_of(model))


def test_a_threshold_follows_its_level_between_two_settlings():
    """To first order: what a unit keeps moves as its level does."""
    model, fitted = vector(factors=False)
    fitted.settle()
    before = {name: float(members[0].threshold) for name, members in unit_members(model).items()}
    first, slope = fitted.level_names[0], fitted._settled.slope[0]
    with torch.no_grad():
        fitted.values[-len(fitted.level_names)] += 0.03 / LEVEL_SCALE
    fitted.bind()
    for name, members in unit_members(model).items():
        assert members[0].threshold.requires_grad
        expected = before[name] * (torch.exp(slope * 0.03).item() if name == first else 1)
        assert float(members[0].threshold.detach()) == pytest.approx(expected, rel=1e-4)
    assert achieved(model, text()[0])[1][first] == pytest.approx(0.53, abs=0.006)
    fitted.settle()
    found = achieved(model, text()[0])[1]
    assert found == pytest.approx({name: 0.53 if name == first else 0.5 for name in found}, abs=0.004)


@pytest.mark.parametrize("exactly", [False, True])
def test_settling_pays_for_what_is_always_read(exactly):
    model, fitted = vector()
    fitted.settle(exactly=exactly)
    total, by_unit = achieved(model, text()[0])
    assert total == pytest.approx(0.5, abs=0.003 if exactly else 0.005)
    assert by_unit == pytest.approx(dict.fromkeys(by_unit, 0.5), abs=0.003 if exactly else 0.005)
    assert state(model).recipe.settled


def levels_of(fitted, levels):
    with torch.no_grad():
        fitted.values[-len(levels) :] = torch.tensor(levels) / LEVEL_SCALE


@pytest.mark.parametrize(
    "levels",
    [
        [0.5] * 8,
        [0.55] * 8,
        [0.3, 0.5, 0.6, 0.7, 0.4, 0.8, 0.2, 0.45],
        [-0.3, 0.4, 0.5, 0.6, 0.5, 0.4, 0.6, 0.5],
        [0.4, 0.5, 0.6, 1.2, 0.5, 0.4, 0.6, 0.5],
        [0.94, 0.3, 0.2, 0.3, 0.2, 0.3, 0.2, 0.3],  # the shift brings some to a bound
        [0.03, 0.6, 0.7, 0.9, 0.04, 0.9, 0.7, 0.8],
    ],
)
def test_project_keeps_the_bytes_and_the_bounds(levels):
    model, fitted = vector(model_of(rho=1.0))
    levels_of(fitted, levels)
    fitted.project()
    sizes = torch.tensor([state(model).recipe.units[name].size for name in fitted.level_names]).double()
    found = fitted.levels.detach().double()
    assert float((found * sizes).sum() / sizes.sum()) == pytest.approx(0.5, abs=1e-4)
    assert float(found.min()) >= LEAST - 1e-6
    assert float(found.max()) <= MOST + 1e-6
    moved = [
        after - before
        for before, after in zip(levels, found.tolist(), strict=True)
        if min(before, after) > LEAST + 1e-6 and max(before, after) < MOST - 1e-6
    ]
    assert max(moved) - min(moved) < 1e-6  # all by the same
    before = fitted.values.detach().clone()
    levels_of(fitted, [0.5] * 8)
    assert torch.equal(fitted.values[:-8], before[:-8])


def test_no_level_eats_what_is_always_read():
    """A level above 1 − (factors + vector) has no threshold that reaches it, and no recipe."""
    model = model_of(rho=0.2)
    fixed = max(unit.fixed_size / unit.size for unit in state(model).recipe.units.values())
    assert fixed > 0.3
    model, fitted = vector(model)
    recipe = state(model).recipe

    def recipe_of_levels():
        units = {name: dataclasses.replace(recipe.units[name], sparsity=level) for name, level in fitted.sparsities().items()}
        return dataclasses.replace(recipe, units=units)

    levels_of(fitted, [1.2] * 8)
    assert [unit.kept_share for unit in recipe_of_levels().units.values()] == pytest.approx([0] * 8, abs=1e-12)
    levels_of(fitted, [1.2, 0.3] * 4)
    fitted.project()
    found = recipe_of_levels()
    assert found.sparsity == pytest.approx(0.5, abs=1e-4)
    assert min(unit.kept_share for unit in found.units.values()) < 0.01
    replace_units(model, found.units)
    fitted.settle(exactly=True)
    assert achieved(model, text()[0])[1] == pytest.approx(fitted.sparsities(), abs=0.003)


def test_a_level_beyond_the_bounds_may_stay_where_the_recipe_has_it():
    model = model_of(rho=1.0)
    recipe = state(model).recipe
    low, high, *_ = recipe.units
    changed = {low: 0.01, high: 0.97}
    replace_units(
        model, {name: dataclasses.replace(unit, sparsity=changed.get(name, 0.5)) for name, unit in recipe.units.items()}
    )
    _, fitted = vector(model)
    fitted.project()
    assert fitted.sparsities() == pytest.approx({name: changed.get(name, 0.5) for name in recipe.units}, abs=1e-5)


def test_project_gradient_leaves_what_changes_no_bytes():
    _, fitted = vector()
    gradient = torch.randn(fitted.values.shape, generator=torch.Generator().manual_seed(0))
    fitted.values.grad = gradient.clone()
    fitted.project_gradient()
    found, sizes = fitted.values.grad[-8:].double(), fitted.sizes.double()
    assert float(found @ sizes / (found.norm() * sizes.norm())) == pytest.approx(0, abs=1e-6)
    assert torch.equal(fitted.values.grad[:-8], gradient[:-8])
    taken = gradient[-8:].double() - found
    assert_close_rms(taken / taken.norm(), sizes / sizes.norm() * torch.sign(taken[0]), torch.float32)  # and no more


def test_without_levels_there_is_nothing_to_project():
    _, fitted = vector(levels=False)
    fitted.values.grad, before = torch.ones_like(fitted.values), fitted.values.detach().clone()
    fitted.project_gradient()
    fitted.project()
    assert torch.equal(fitted.values.grad, torch.ones_like(before))
    assert torch.equal(fitted.values.detach(), before)
    assert fitted.sparsities() == {}
