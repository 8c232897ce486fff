from __future__ import annotations

import dataclasses
import errno
import json
import math
import os

import pytest

from rsparse.errors import RSparseError
from rsparse.recipe import Recipe, UnitRecipe, lowrank_rank

QKV = {"q": 4096, "k": 1024, "v": 1024}  # Llama-3-8B's shapes, in 4096


def unit(**changes):
    values = {"linears": ("a", "b"), "outs": (6, 2), "in_features": 4, "sparsity": 0.5, **changes}
    return UnitRecipe(**values)


def recipe(**changes):
    units = {
        "first": UnitRecipe.uniform(QKV, 4096, 0.5, 0.9, criterion="paper", stacked=True),
        "second": UnitRecipe.uniform({"o": 4096}, 4096, 0.4, 0.95),
        "third": UnitRecipe.uniform({"down": 4096}, 14336, 0.0),
    }
    values = {"model_type": "llama", "units": units, "grouping": "group", "fit": "dropped", "model": "a/b", **changes}
    return Recipe(**values).with_thresholds({"first": 0.25})


# 4096·4096/8192 = 2048 and 1024·4096/5120 = 819.2, times (1−s)(1−rho)
@pytest.mark.parametrize(
    ("sparsity", "rho", "out", "in_features", "rank"),
    [
        (0.5, 0.9, 4096, 4096, 102),  # 102.4
        (0.5, 0.9, 1024, 4096, 40),  # 40.96: k and v of GQA get their own shape's rank
        (0.5, 0.0, 1024, 4096, 409),  # 409.6
        (0.0, 0.5, 1024, 4096, 409),
        (0.5, 1.0, 4096, 4096, 0),
        (0.4, 0.95, 14336, 4096, 95),  # 0.03 · 3185.78 = 95.57
        (0.5, 0.9, 3, 6, 0),  # 0.1: no room
        (0.4, 0.5, 20, 20, 3),  # 0.6·0.5·10 is 3 but 2.9999999999999996 in floating point elsewhere
        (0.7, 0.0, 20, 20, 3),  # (1 − 0.7)·10 = 3.0000000000000004
        (0.9, 0.0, 200, 200, 10),  # (1 − 0.9)·100 = 9.999999999999998
    ],
)
def test_rank_is_the_floor_of_its_budget(sparsity, rho, out, in_features, rank):
    assert lowrank_rank(sparsity, rho, out, in_features) == rank


def test_ranks_per_linear_and_stacked():
    each = UnitRecipe.uniform(QKV, 4096, 0.5, 0.9)
    assert each.ranks == (102, 40, 40)
    assert each.lowrank_size == 102 * 8192 + 2 * 40 * 5120
    assert each.rank == 182
    stacked = UnitRecipe.uniform(QKV, 4096, 0.5, 0.9, stacked=True)
    assert stacked.ranks == (122,)  # 0.05 · 6144·4096/10240 = 122.88
    assert stacked.lowrank_size == 122 * 10240
    assert stacked.rank == 122


def test_kept_share_pays_for_the_factors():
    k = UnitRecipe.uniform({"k": 1024}, 4096, 0.5, 0.9)
    assert k.kept_share == pytest.approx(0.5 - 40 * 5120 / (1024 * 4096), abs=1e-15)
    assert UnitRecipe.uniform(QKV, 4096, 0.5).kept_share == 0.5
    hand = unit(sparsity=0.25, ranks=(1, 1))  # (10 + 6) of 32 weights
    assert hand.kept_share == pytest.approx(0.25)


@pytest.mark.parametrize("changes", [{}, {"linears": ("a",), "outs": (8,)}, {"linears": ("a", "b", "c"), "outs": (1, 2, 5)}])
def test_a_vector_costs_one_channel(changes):
    """out numbers of out·in, whatever the linears: 8 of 32."""
    assert unit(compensated=True, **changes).kept_share == pytest.approx(0.5 - 1 / 4, abs=1e-15)
    both = unit(compensated=True, ranks=(1,), sparsity=0.25, **changes)  # 8 + 12 of 24 that are left
    assert both.fixed_size == 20
    assert both.lowrank_size == 12
    assert both.kept_share == pytest.approx(4 / 32, abs=1e-15)
    assert unit(compensated=True, sparsity=0.75, **changes).kept_share == pytest.approx(0, abs=1e-15)
    down = dataclasses.replace(UnitRecipe.uniform({"down": 4096}, 14336, 0.5), compensated=True)
    assert down.kept_share == pytest.approx(0.5 - 1 / 14336, abs=1e-15)


def test_compensation_in_json_and_in_the_sha(tmp_path):
    plain = recipe()
    first = dataclasses.replace(plain.units["first"], compensated=True)
    done = dataclasses.replace(plain, units={**plain.units, "first": first})
    labelled = dataclasses.replace(done, compensation="a text: vectors")
    labelled.save(tmp_path / "r.json")
    after = Recipe.load(tmp_path / "r.json")
    assert after == labelled
    assert [unit.compensated for unit in after.units.values()] == [True, False, False]
    assert after.compensation == "a text: vectors"
    assert labelled.sha() == done.sha() != plain.sha()


def test_a_file_from_before_compensation_loads(tmp_path):
    data = json.loads(json.dumps(recipe().to_dict()))
    del data["compensation"]
    for each in data["units"].values():
        del each["compensated"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert Recipe.load(tmp_path / "old.json") == recipe()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.93])
def test_a_uniform_unit_never_overspends(sparsity, rho, stacked):
    unit = UnitRecipe.uniform({"q": 57, "k": 13}, 31, sparsity, rho, stacked=stacked)
    assert unit.kept_share >= -1e-12
    assert unit.kept_share * unit.size + unit.lowrank_size == pytest.approx((1 - sparsity) * unit.size)
    # rho is the kept channels' share of the budget; the floor gives them up to one rank more a factor pair
    slack = len(unit.ranks) * (31 + 57 + 13) / unit.size
    assert 0 <= unit.kept_share - (1 - sparsity) * unit.rho + 1e-12 <= slack + 1e-12


def test_sparsity_zero_forces_rho_one():
    unit = UnitRecipe.uniform(QKV, 4096, 0.0, 0.5)
    assert (unit.rho, unit.ranks, unit.kept_share) == (1.0, (0, 0, 0), 1.0)


def test_recipe_sparsity_is_weighted_by_size():
    units = {"a": UnitRecipe(("a",), (3,), 10, 0.5), "b": UnitRecipe(("b",), (7,), 10, 0.2)}
    assert Recipe("llama", units).sparsity == pytest.approx(0.5 * 0.3 + 0.2 * 0.7)
    with pytest.raises(RSparseError, match="no units"):
        Recipe("llama", {})


def test_what_it_asks_of_each_kind():
    asked = {
        "layers.0.q": unit(linears=("a",), outs=(8,), rho=0.9, ranks=(1,)),
        "layers.1.q": unit(linears=("b",), outs=(2,), criterion="column_norm"),
        "layers.0.up": unit(linears=("c",), outs=(2,), rho=0.7),
    }  # fmt: skip
    found = Recipe("llama", asked).kinds()
    assert found["q"] == {"rho": 0.95, "ranked": 0.5, "criterion": ["column_norm", "magnitude"]}
    assert found["up"] == {"rho": 0.7, "ranked": 0.0, "criterion": ["magnitude"]}


def test_settled_needs_a_threshold_only_where_channels_are_dropped():
    assert not recipe().settled
    done = recipe().with_thresholds({"second": 0.0})
    assert done.settled
    assert done.units["first"].threshold == 0.25
    assert done.units["third"].threshold is None


def test_json_round_trip(tmp_path):
    path = tmp_path / "recipe.json"
    before = recipe()
    before.save(path)
    after = Recipe.load(path)
    assert after == before
    assert list(after.units) == list(before.units)
    assert (after.units["first"].linears, after.units["first"].outs) == (("q", "k", "v"), (4096, 1024, 1024))
    assert after.sha() == before.sha()
    assert after.with_thresholds({"first": 0.26}).sha() != before.sha()
    assert json.loads(path.read_text())["version"] == 1


def test_threshold_survives_json_exactly(tmp_path):
    value = math.nextafter(0.1, 1)
    recipe().with_thresholds({"first": value}).save(tmp_path / "r.json")
    assert Recipe.load(tmp_path / "r.json").units["first"].threshold == value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"threshold": math.nan}, "threshold"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": math.inf}, "threshold"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({"sparsity": math.nan}, "sparsity"),
        ({"rho": 1.1}, "rho"),
        ({"rho": -0.1}, "rho"),
        ({"rho": math.nan}, "rho"),
        ({"sparsity": 0.0, "rho": 0.5}, "rho 1, rank 0"),
        ({"sparsity": 0.0, "ranks": (1,)}, "rank 0"),
        ({"ranks": (2,)}, "costs more"),  # 2·(4+8) = 24 of 16 kept weights
        ({"ranks": (1, 2)}, "costs more"),  # 10 + 12
        ({"sparsity": 0.0, "compensated": True}, "no compensation"),
        ({"sparsity": 0.8, "compensated": True}, "costs more"),  # 8 of 6.4
        ({"ranks": (-1,)}, "ranks"),
        ({"ranks": ()}, "ranks"),
        ({"ranks": (0, 0, 0)}, "ranks"),
        ({"linears": (), "outs": ()}, "at least one linear"),
        ({"outs": (6,)}, "positive sizes"),
        ({"outs": (6, 0)}, "positive sizes"),
        ({"in_features": 0}, "positive"),
    ],
)
def test_a_unit_out_of_range_is_refused(changes, says):
    with pytest.raises(RSparseError, match=says) as caught:
        unit(**changes)
    assert "\n" not in str(caught.value)


def test_a_budget_of_less_than_one_channel_is_refused():
    """16 of 4096 channels are left at 1 − 16 / 4096; at 0.9998 it is 0.8 of one."""
    assert UnitRecipe.uniform(QKV, 4096, 1 - 16 / 4096).kept_share * 4096 == pytest.approx(16)
    assert UnitRecipe.uniform(QKV, 4096, 1 - 1 / 4096).kept_share * 4096 == pytest.approx(1)
    with pytest.raises(RSparseError, match=r"sparsity 0.9998 leaves less than one of its 4096 input channels"):
        UnitRecipe.uniform(QKV, 4096, 0.9998)


@pytest.mark.parametrize(
    ("sparsity", "rho"), [(1.0, 1.0), (-0.1, 1.0), (math.nan, 1.0), (0.5, 1.5), (0.5, -1), (0.5, math.nan)]
)
def test_uniform_refuses_what_is_out_of_range(sparsity, rho):
    with pytest.raises(RSparseError, match=r"sparsity must be in \[0, 1\) and rho in \[0, 1\]"):
        UnitRecipe.uniform(QKV, 4096, sparsity, rho)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "version 2"),
        ({"grouping": "block"}, "grouping"),
        ({"fit": "lora"}, "fit"),
        ({"units": {"x": unit(), "y": unit(linears=("b", "c"))}}, "two units"),
    ],
)
def test_a_recipe_out_of_range_is_refused(changes, says):
    with pytest.raises(RSparseError, match=says):
        dataclasses.replace(recipe(), **changes)


def _in(*path, value):
    """A change to the JSON of recipe(): set what `path` leads to."""

    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def _without(*path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


FIRST = ("units", "first")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_in("colour", value=1), "'colour'"),
        (_in(*FIRST, "colour", value=1), "first.*'colour'"),
        (_without("units"), "'units'"),
        (_without("model_type"), "'model_type'"),
        (_without(*FIRST, "in_features"), "first.*'in_features'"),
        (_in("version", value=7), "version 7"),
        (_in("version", value="1"), "'version'"),
        (_in("units", value=[]), "'units'"),
        (_in("method", value=3), "'method'"),
        (_in(*FIRST, value=3), "first"),
        (_in(*FIRST, "sparsity", value="0.5"), "'sparsity'"),
        (_in(*FIRST, "sparsity", value=math.nan), "sparsity"),
        (_in(*FIRST, "rho", value=-1), "rho"),
        (_in(*FIRST, "threshold", value=math.nan), "threshold"),
        (_in(*FIRST, "threshold", value=-1.0), "threshold"),
        (_in(*FIRST, "threshold", value="high"), "'threshold'"),
        (_in(*FIRST, "ranks", value=3), "'ranks'"),
        (_in(*FIRST, "ranks", value=["3"]), "ranks"),
        (_in(*FIRST, "ranks", value=[0.5]), "ranks"),
        (_in(*FIRST, "ranks", value=[10_000]), "costs more"),
        (_in(*FIRST, "compensated", value=1), "'compensated'"),
        (_in("compensation", value=None), "'compensation'"),
        (_in(*FIRST, "in_features", value=4096.0), "'in_features'"),
        (_in(*FIRST, "outs", value=[4096, "1024", 1024]), "'outs'"),
        (_in(*FIRST, "outs", value=[4096, None, 1024]), "'outs'"),
        (_in(*FIRST, "outs", value=[4096]), "positive sizes"),
        (_in(*FIRST, "linears", value={"q": 4096}), "'linears'"),
        (_in(*FIRST, "linears", value=["q", "k", 3]), "'linears'"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path, change, says):
    data = recipe().to_dict()
    data = json.loads(json.dumps(data))
    change(data)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RSparseError, match=says) as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "3", "null", "\xff"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RSparseError, match=r"bad\.json"):
        Recipe.load(path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "r.json"
    recipe().save(path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(RSparseError, match="cut short") as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RSparseError, match=os.strerror(errno.ENOENT)):
        Recipe.load(tmp_path / "none.json")
