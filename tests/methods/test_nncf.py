"""NNCF: levels by name pattern, scaled by hand. A block of the tiny Llama: q, o 2304, k, v 1152, MLP 3 × 3840; 18432."""

from __future__ import annotations

import pytest

from rsparse import make_recipe
from rsparse.errors import RSparseError
from tests.support.models import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def by_projection(recipe):
    found = {}
    for name, unit in recipe.units.items():
        found.setdefault(name.rpartition(".")[2], set()).add(unit.sparsity)
    assert all(len(levels) == 1 for levels in found.values())  # the same in both blocks
    return {name: levels.pop() for name, levels in found.items()}


def test_its_documented_levels_are_scaled_to_the_total(model):
    recipe = make_recipe(model, "nncf", 0.25)
    assert (recipe.method, recipe.grouping) == ("nncf", "linear")
    levels = by_projection(recipe)
    factor = 0.25 * 18432 / (0.3 * 7680 + 0.5 * 3840)  # 1.0909…
    assert levels["gate_proj"] == levels["up_proj"] == pytest.approx(0.3 * factor)
    assert levels["down_proj"] == pytest.approx(0.5 * factor)
    assert {levels[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj")} == {0.0}
    assert recipe.sparsity == pytest.approx(0.25, abs=1e-12)
    assert {(unit.criterion, unit.rho, unit.rank) for unit in recipe.units.values()} == {("magnitude", 1.0, 0)}


def test_the_cap_gives_its_excess_to_the_rest(model):
    levels = by_projection(make_recipe(model, "nncf", 0.5))
    assert levels["down_proj"] == 0.95  # 0.5 · 9216 / 4224 = 1.09
    assert levels["up_proj"] == pytest.approx((9216 - 0.95 * 3840) / 7680)  # 0.725
    assert make_recipe(model, "nncf", 0.5).sparsity == pytest.approx(0.5, abs=1e-12)


def test_caps_one_after_the_other(model):
    """q at 0.9 goes over at once; only without it does o."""
    levels = by_projection(make_recipe(model, "nncf", 0.5, levels={"q_proj": 0.9, "o_proj": 0.5, "mlp": 0.3}))
    # 9216 / (0.9·2304 + 0.5·2304 + 0.3·11520) = 1.38: q 1.24; then (9216 − 2188.8) / 4608 = 1.525: o 0.76, MLP 0.4575
    assert levels["q_proj"] == 0.95
    assert levels["o_proj"] == pytest.approx(0.5 * (9216 - 0.95 * 2304) / 4608)
    assert levels["down_proj"] == pytest.approx(0.3 * (9216 - 0.95 * 2304) / 4608)
    levels = by_projection(make_recipe(model, "nncf", 0.55, levels={"q_proj": 0.9, "o_proj": 0.6, "mlp": 0.25}))
    # 1.4 → q 1.26; then (10137.6 − 2188.8) / (1382.4 + 2880) = 1.865: o 1.12; then (10137.6 − 4377.6) / 2880 = 2
    assert (levels["q_proj"], levels["o_proj"]) == (0.95, 0.95)
    assert levels["up_proj"] == pytest.approx(0.5)


def test_all_that_the_patterns_can_give(model):
    levels = by_projection(make_recipe(model, "nncf", 0.95 * 11520 / 18432))
    assert [levels[name] for name in ("gate_proj", "up_proj", "down_proj")] == pytest.approx([0.95] * 3)
    with pytest.raises(RSparseError, match=r"make 0\.594 of all weights, and 0\.6 is asked"):
        make_recipe(model, "nncf", 0.6)


def test_levels_as_a_string(model):
    as_mapping = make_recipe(model, "nncf", 0.1, levels={r"layers\.0\..*up_proj": 0.4, "down_proj": 0.2, "o_proj": 0.0})
    assert make_recipe(model, "nncf", 0.1, levels=r"layers\.0\..*up_proj=0.4; down_proj=.2;o_proj=0;") == as_mapping
    by_name = {name.removeprefix("model.layers."): unit.sparsity for name, unit in as_mapping.units.items()}
    factor = 0.1 * 2 * 18432 / (0.4 * 3840 + 0.2 * 2 * 3840)
    assert by_name["0.mlp.up_proj"] == pytest.approx(0.4 * factor)
    assert by_name["1.mlp.up_proj"] == by_name["0.self_attn.o_proj"] == 0
    assert by_name["1.mlp.down_proj"] == pytest.approx(0.2 * factor)
    assert as_mapping.sparsity == pytest.approx(0.1, abs=1e-12)


def test_a_pattern_may_hold_an_equals_sign(model):
    levels = by_projection(make_recipe(model, "nncf", 0.05, levels="(?=model).*q_proj=0.4"))
    assert levels["q_proj"] == pytest.approx(0.05 * 18432 / 2304)


def test_in_groups(model):
    recipe = make_recipe(model, "nncf", 0.25, grouping="group")
    factor = 0.25 * 18432 / 4224
    assert by_projection(recipe) == pytest.approx({"qkv": 0, "o": 0, "gate_up": 0.3 * factor, "down": 0.5 * factor})
    with pytest.raises(RSparseError, match=r"group model\.layers\.0\.gate_up have different levels; use grouping 'linear'"):
        make_recipe(model, "nncf", 0.1, levels={"up_proj": 0.3}, grouping="group")


def test_nothing_asked(model):
    assert make_recipe(model, "nncf", 0.0).sparsity == 0


@pytest.mark.parametrize(
    ("sparsity", "levels", "says"),
    [
        (0.2, {"fc1": 0.3}, "no linear of the model matches 'fc1'"),
        (0.2, {"lm_head": 0.3}, "no linear of the model matches 'lm_head'"),
        (0.2, {"up_proj": 1.0}, r"a level in \[0, 1\), got up_proj=1.0"),
        (0.2, {"up_proj": -0.1}, "got up_proj=-0.1"),
        (0.2, {"up_proj": float("nan")}, "got up_proj=nan"),
        (0.2, {"up_proj": None}, "got up_proj=None"),
        (0.2, "up_proj=much", "got up_proj=much"),
        (0.2, "up_proj", "PATTERN=LEVEL"),
        (0.2, "=0.3", "PATTERN=LEVEL"),
        (0.2, {"up_(proj": 0.3}, "'up_.proj' is no regular expression"),
        (0.2, {"up_proj": 0.3, "mlp": 0.2}, r"both 'up_proj' and 'mlp' match model\.layers\.0\.mlp\.up_proj"),
        (0.2, {"up_proj": 0.0}, "make 0.000 of all weights, and 0.2 is asked; match more linears"),
        (0.2, {}, "match more linears"),
        (0.2, 0.3, "levels must be a mapping or PATTERN=LEVEL;PATTERN=LEVEL, got 0.3"),
    ],
)
def test_refusals(model, sparsity, levels, says):
    with pytest.raises(RSparseError, match=says) as caught:
        make_recipe(model, "nncf", sparsity, levels=levels)
    assert "\n" not in str(caught.value)


def test_grouping_is_checked(model):
    with pytest.raises(RSparseError, match="grouping must be one of"):
        make_recipe(model, "nncf", 0.2, grouping="heap")
