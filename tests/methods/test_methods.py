"""Each method's recipe, by numbers worked out by hand for the tiny Llama: hidden 48, MLP 80, k and v 24."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsparse import make_recipe
from rsparse.errors import RSparseError
from rsparse.methods import names
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of

Q, K, O = "self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj"  # noqa: E741
UP, DOWN = "mlp.up_proj", "mlp.down_proj"


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def units_of(recipe, block=1):
    prefix = f"model.layers.{block}."
    return {name.removeprefix(prefix): unit for name, unit in recipe.units.items() if name.startswith(prefix)}


def test_every_method_has_a_test_here():
    own_files = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")} - {
        "methods",
        "method_spec",
        "contract",
        "sources",
    }
    assert set(names()) == {"dense", "low_rank_only", "rsparse", "sparse_only"} | own_files
    assert names() == sorted(names())


def test_rsparse(model):
    recipe = make_recipe(model, "rsparse", 0.5, rho=0.6)
    assert (recipe.method, recipe.grouping, recipe.fit, recipe.model_type) == ("rsparse", "linear", "dropped", "llama")
    assert len(recipe.units) == 14
    assert not recipe.settled
    units = units_of(recipe)
    # 0.5·0.4·out·in/(out+in): 0.2·24 = 4.8, 0.2·16 = 3.2, 0.2·30 = 6
    assert {name: units[name].ranks for name in (Q, O, K, UP, DOWN)} == {Q: (4,), O: (4,), K: (3,), UP: (6,), DOWN: (6,)}
    # 0.5 − r·(in+out)/(in·out)
    assert units[Q].kept_share == pytest.approx(0.5 - 4 * 96 / 2304)
    assert units[K].kept_share == pytest.approx(0.5 - 3 * 72 / 1152)
    assert units[DOWN].kept_share == pytest.approx(0.3)
    assert {(unit.sparsity, unit.rho, unit.criterion, unit.threshold) for unit in recipe.units.values()} == {
        (0.5, 0.6, "magnitude", None)
    }
    assert recipe.sparsity == pytest.approx(0.5)


def test_rsparse_in_groups(model):
    own = units_of(make_recipe(model, "rsparse", 0.5, rho=0.6, grouping="group"))
    assert {name: unit.ranks for name, unit in own.items()} == {"qkv": (4, 3, 3), "o": (4,), "gate_up": (6, 6), "down": (6,)}
    assert own["qkv"].outs == (48, 24, 24)
    # q: 4·(48+48), k and v: 3·(48+24) each, of 96·48 weights
    assert own["qkv"].kept_share == pytest.approx(0.5 - (4 * 96 + 2 * 3 * 72) / (96 * 48))
    stacked = units_of(make_recipe(model, "rsparse", 0.5, rho=0.6, grouping="group", stacked=True))
    # qkv: 0.2·96·48/144 = 6.4; gate_up: 0.2·160·48/208 = 7.38…
    assert {name: unit.ranks for name, unit in stacked.items()} == {"qkv": (6,), "o": (4,), "gate_up": (7,), "down": (6,)}
    assert stacked["gate_up"].kept_share == pytest.approx(0.5 - 7 * 208 / 7680)


def test_rsparse_as_in_the_paper(model):
    recipe = make_recipe(model, "rsparse", 0.4, rho=0.9, criterion="paper", fit="svd")
    assert recipe.fit == "svd"
    # 0.6·0.1·24 = 1.44, 0.06·16 = 0.96, 0.06·30 = 1.8
    assert {name: unit.rank for name, unit in units_of(recipe).items() if name in (Q, K, UP)} == {Q: 1, K: 0, UP: 1}
    assert {unit.criterion for unit in recipe.units.values()} == {"paper"}


def test_sparse_only(model):
    recipe = make_recipe(model, "sparse_only", 0.3, criterion="column_norm")
    assert recipe.method == "sparse_only"
    found = {(unit.sparsity, unit.rho, unit.rank, unit.criterion) for unit in recipe.units.values()}
    assert found == {(0.3, 1.0, 0, "column_norm")}
    assert all(unit.kept_share == pytest.approx(0.7) for unit in recipe.units.values())


def test_low_rank_only(model):
    recipe = make_recipe(model, "low_rank_only", 0.5)
    units = units_of(recipe)
    assert (recipe.method, recipe.fit) == ("low_rank_only", "svd")
    # 0.5·24 = 12 exactly; 0.5·16 = 8; 0.5·30 = 15
    assert {name: unit.rank for name, unit in units.items() if name in (Q, K, UP)} == {Q: 12, K: 8, UP: 15}
    assert all(unit.kept_share == pytest.approx(0, abs=1e-12) for unit in units.values())
    left_over = units_of(make_recipe(model, "low_rank_only", 0.45))[K]
    assert left_over.rank == 8  # 0.55·16 = 8.8
    assert left_over.kept_share == pytest.approx(0.05)


def test_dense_ignores_the_level(model):
    recipe = make_recipe(model, "dense", 0.7)
    assert recipe.method == "dense"
    assert recipe.sparsity == 0
    assert recipe.settled
    assert all(unit.kept_share == 1 for unit in recipe.units.values())


@pytest.mark.parametrize("method", ["rsparse", "sparse_only", "low_rank_only"])
def test_sparsity_zero_keeps_everything(model, method):
    recipe = make_recipe(model, method, 0.0)
    assert {(unit.rho, unit.rank, unit.kept_share) for unit in recipe.units.values()} == {(1.0, 0, 1.0)}


def test_options_of_none_mean_the_default(model):
    assert make_recipe(model, "rsparse", 0.5, rho=None, fit=None) == make_recipe(model, "rsparse", 0.5)


def test_options_may_be_strings(model):
    as_strings = make_recipe(model, "rsparse", 0.5, rho="0.6", stacked="true", grouping="group", fit="svd")
    assert as_strings == make_recipe(model, "rsparse", 0.5, rho=0.6, stacked=True, grouping="group", fit="svd")
    assert make_recipe(model, "rsparse", 0.5, rho=0.6, stacked="no") == make_recipe(model, "rsparse", 0.5, rho=0.6)
    assert make_recipe(model, "rsparse", 0.5, rho=1) == make_recipe(model, "rsparse", 0.5, rho=1.0)


def test_a_calibration_is_no_concern_of_methods_without_one(model):
    calibration = calibration_of("llama")
    assert make_recipe(model, "sparse_only", 0.5, calibration=calibration) == make_recipe(model, "sparse_only", 0.5)


@pytest.mark.parametrize(
    ("method", "sparsity", "options", "says"),
    [
        (
            "magic",
            0.5,
            {},
            "'magic' is unknown; choose one of cats, dejavu, dense, griffin, joint, low_rank_only, nncf, relufication, "
            "rsparse, searched, sparse_only, teal, wina",
        ),
        ("uniform", 0.5, {}, "'uniform'"),
        ("", 0.5, {}, "unknown"),
        ("rsparse", 1.0, {}, r"sparsity must be in \[0, 1\), got 1\.0"),
        ("rsparse", 1.5, {}, "sparsity"),
        ("rsparse", -0.1, {}, "sparsity"),
        ("sparse_only", float("nan"), {}, "sparsity"),
        ("dense", 2.0, {}, "sparsity"),
        ("rsparse", 0.5, {"rho": 2.0}, "rho"),
        ("rsparse", 0.5, {"rho": float("nan")}, "rho"),
        ("rsparse", 0.5, {"rho": "most"}, "method rsparse: rho must be a number, got 'most'"),
        ("rsparse", 0.5, {"rho": True}, "method rsparse: rho must be a number, got True"),
        ("rsparse", 0.5, {"rho": [0.5]}, r"method rsparse: rho must be a number, got \[0.5\]"),
        ("rsparse", 0.5, {"stacked": "both"}, "method rsparse: stacked must be true or false, got 'both'"),
        ("rsparse", 0.5, {"stacked": 1}, "method rsparse: stacked must be true or false, got 1"),
        ("rsparse", 0.5, {"fit": 3}, "method rsparse: fit must be a word, got 3"),
        ("rsparse", 0.0, {"rho": 2.0}, "rho"),
        ("rsparse", 0.5, {"colour": "red"}, "rsparse takes no option 'colour'"),
        ("sparse_only", 0.5, {"rho": 0.5}, "sparse_only takes no option 'rho'"),
        ("low_rank_only", 0.5, {"criterion": "magnitude"}, "takes no option 'criterion'"),
        ("dense", 0.5, {"fit": "svd"}, "takes no option 'fit'"),
        ("rsparse", 0.5, {"criterion": "taste"}, "'taste' is unknown; choose one of column_norm, magnitude"),
        ("rsparse", 0.5, {"grouping": "heap"}, "grouping must be one of linear, group, got 'heap'"),
        ("rsparse", 0.5, {"fit": "tight"}, "fit must be one of svd, dropped, got 'tight'"),
    ],
)
def test_refusals(model, method, sparsity, options, says):
    with pytest.raises(RSparseError, match=says) as caught:
        make_recipe(model, method, sparsity, **options)
    assert "\n" not in str(caught.value)
