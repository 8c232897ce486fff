"""Moves of groups at equal bytes, on fitness made by hand, whose minimum is known."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from rsparse.search import allocation as module
from rsparse.search.resume import AllocationFile
from tests.search.allocations import KINDS, kind, start_of
from tests.support.models import tiny_model
from tests.support.recipes import SEQ_LEN, calibration_of


@contextlib.contextmanager
def opened(levels=0.5):
    """An allocation of the tiny Llama, to move by hand."""
    model = tiny_model("llama")
    kept = AllocationFile(None, {})
    search = module._Allocation(model, calibration_of("llama"), start_of(model, levels), "linear", SEQ_LEN, False, kept)
    search.kl = search._judge(search.choices)
    try:
        yield search
    finally:
        search.close()


def group(search, *kinds):
    return np.array([kind(name) in kinds for name in search.names], float)


def level(units, wanted):
    """The mean over the blocks."""
    return np.mean([each.sparsity for name, each in units.items() if kind(name) == wanted])


# q_proj is an eighth of the weights: moved alone by 1, it ends 7/8 higher, and all others 1/8 lower.
OWN = 7 / 8


@pytest.mark.parametrize("target", [0.42, 0.5, 0.58])
def test_a_newton_step_lands_on_the_minimum_of_a_quadratic(judging, target):
    judging(lambda units: 1 + 3 * (level(units, "q_proj") - target) ** 2)
    with opened() as search:
        search._move_groups([group(search, "q_proj")])
        assert search.kl == pytest.approx(1, abs=1e-12)
        for name, each in search.choices.items():
            moved = (target - 0.5) / OWN
            assert each.sparsity == pytest.approx(target if kind(name) == "q_proj" else 0.5 - moved / 8, abs=1e-9)


def test_where_two_groups_do_the_same_half_the_step_is_kept(judging):
    judging(lambda units: 1 + 5 * (level(units, "q_proj") - level(units, "o_proj") - 0.1) ** 2)
    with opened() as search:
        search._move_groups([group(search, "q_proj"), group(search, "o_proj")])
        assert search.kl == pytest.approx(1, abs=1e-12)
        assert level(search.choices, "q_proj") == pytest.approx(0.55)
        assert level(search.choices, "o_proj") == pytest.approx(0.45)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("curvature", [0, -1, 0.01])
def test_a_flat_or_concave_direction_moves_by_the_reach_downhill(judging, sign, curvature):
    def value(units):
        x = level(units, "q_proj") - 0.5
        return 1 - sign * 0.5 * x + curvature * x * x

    judged = judging(value)
    with opened() as search:
        del judged[:]
        search._move_groups([group(search, "q_proj")])
        moved = [level(units, "q_proj") - 0.5 for units, _ in judged]
        assert moved == pytest.approx([x * OWN for x in (0.04, -0.04, *(sign * 0.12 * scale for scale in (1, 0.5, 1.5)))])
        assert level(search.choices, "q_proj") - 0.5 == pytest.approx(sign * 0.18 * OWN)


def test_where_nothing_changes_nothing_moves(judging):
    judged = judging(lambda units: 1.0)
    with opened() as search:
        before = search.choices
        search._move_groups(search._groups())
        assert search.choices is before
        for units, _ in judged[-3:]:
            assert [each.sparsity for each in units.values()] == pytest.approx([0.5] * 14)


def test_groups_are_the_kinds_and_the_blocks():
    with opened() as search:
        groups = [{name for name, inside in zip(search.names, each, strict=True) if inside} for each in search._groups()]
    names = set(search.names)
    assert groups == [
        *({name for name in names if name.endswith(each)} for each in KINDS),
        *({name for name in names if f"layers.{block}." in name} for block in (0, 1)),
    ]
