"""Levels, scores and low rank together: better than where it starts from, at the same bytes."""

from __future__ import annotations

import pytest
import torch

from rsparse import make_recipe
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from rsparse.evaluation.perplexity import evaluate
from rsparse.methods import _greedy, joint
from rsparse.models.layout import unit_shapes
from rsparse.recipe import lowrank_rank
from rsparse.search.allocation import LEAST, MOST, Allocated, Choice
from rsparse.search.candidate import CandidateModel
from rsparse.sparse_model import is_sparse
from tests.methods.greedy_reference import untouched
from tests.support.models import tiny_model
from tests.support.recipes import SEQ_LEN, calibration_of, uniform

JUDGING = 8
QUICK = {"rounds": 0, "lowrank": False, "tokens": 2 * SEQ_LEN}


@pytest.fixture
def uniform_start(monkeypatch):
    """Without the greedy's second."""
    monkeypatch.setattr(
        joint, "greedy_levels", lambda model, *args, **more: dict.fromkeys(unit_shapes(model, more["grouping"]), 0.5)
    )


def joint_of(sparsity, model_type="llama", **options):
    return make_recipe(tiny_model(model_type), "joint", sparsity, calibration=calibration_of(model_type), **options)


@pytest.mark.parametrize("grouping", ["linear", "group"])
def test_it_is_better_than_teal_on_the_windows_that_judged(monkeypatch, grouping):
    """By the search's own measure without low rank, and as a finished model with it."""
    model, calibration = tiny_model("llama"), calibration_of("llama")
    windows = calibration.windows[torch.linspace(0, 63, JUDGING).round().long()]
    options = {"calibration": calibration, "grouping": grouping}
    teal = make_recipe(model, "teal", 0.5, **options)
    monkeypatch.setattr(
        joint, "greedy_levels", lambda *args, **more: {name: unit.sparsity for name, unit in teal.units.items()}
    )
    plain, whole = (
        make_recipe(model, "joint", 0.5, lowrank=lowrank, rounds=1, tokens=JUDGING * SEQ_LEN, **options)
        for lowrank in (False, True)
    )
    candidates = CandidateModel(model, uniform(model, grouping=grouping), calibration, windows, "kl")
    start, found = (candidates.evaluate(recipe).value for recipe in (teal, plain))
    candidates.close()
    assert found < 0.97 * start
    assert {unit.rho for unit in plain.units.values()} == {1.0}
    kl = {}
    for recipe in (teal, whole):
        sparse = sparsify(tiny_model("llama"), recipe, calibration, settle_tokens=1 << 20)
        result = evaluate(sparse, windows)
        kl[recipe.method] = result.kl_to_dense
        assert result.achieved_sparsity == pytest.approx(0.5, abs=0.01)
    assert kl["joint"] < 0.97 * kl["teal"]


@pytest.mark.usefixtures("uniform_start")
def test_what_it_finds_is_what_the_recipe_says(monkeypatch):
    def allocate(model, calibration, start, **options):
        units = enumerate(start)
        criteria = ("magnitude", "column_norm")
        found = {name: Choice(0.3 + number / 50, (1.0, 0.97, 0.94)[number % 3], criteria[number % 2]) for number, name in units}
        return Allocated(found, {}, 1)

    monkeypatch.setattr(joint, "allocate", allocate)
    recipe = joint_of(0.5)
    assert (recipe.method, recipe.grouping, recipe.fit, recipe.model_type) == ("joint", "linear", "dropped", "llama")
    assert not recipe.settled
    choices = allocate(None, None, unit_shapes(tiny_model("llama"), "linear")).choices
    assert list(recipe.units) == list(choices)
    for name, unit in recipe.units.items():
        assert Choice(unit.sparsity, unit.rho, unit.criterion) == choices[name]
        assert (unit.linears, unit.ranks) == ((name,), (lowrank_rank(unit.sparsity, unit.rho, *unit.outs, unit.in_features),))
    assert any(unit.rank for unit in recipe.units.values())


@pytest.mark.usefixtures("uniform_start")
def test_options_reach_the_allocation(monkeypatch):
    seen = []

    def stop(model, calibration, start, kept, **options):
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(joint, "allocate", stop)
    given = {"grouping": "group", "tokens": 48, "rounds": 3, "polish": 5, "lowrank": False, "seed": 7}
    for options in ({}, given):
        with pytest.raises(KeyboardInterrupt):
            joint_of(0.5, **options)
    plain = {"grouping": "linear", "tokens": 4096, "rounds": 2, "polish": 0, "lowrank": True, "seed": 0}
    assert seen == [each | {"criteria": ["column_norm"]} for each in (plain, given)]


def test_a_kill_loses_neither_the_greedys_blocks_nor_the_trials(tmp_path, monkeypatch):
    """And the recipe is the one that nobody disturbed."""
    path, options = tmp_path / "new.allocation", QUICK | {"rounds": 1}
    whole, judged, real = joint_of(0.5, **options), [], CandidateModel.evaluate
    greedy, blocks = _greedy._allocate, []

    def allocate_block(probe, *args):
        blocks.append(list(probe.units))
        if len(blocks) == 2:
            raise KeyboardInterrupt
        return greedy(probe, *args)

    monkeypatch.setattr(_greedy, "_allocate", allocate_block)
    with pytest.raises(KeyboardInterrupt):
        joint_of(0.5, state_file=path, **options)

    def evaluate(self, recipe):
        judged.append(recipe)
        if len(judged) == 9:
            raise KeyboardInterrupt
        return real(self, recipe)

    monkeypatch.setattr(CandidateModel, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        joint_of(0.5, state_file=path, **options)
    assert blocks[1] == blocks[2] != blocks[0]
    monkeypatch.setattr(_greedy, "_allocate", lambda *args: pytest.fail("was done"))
    monkeypatch.setattr(_greedy.BlockStepper, "run", lambda *args: pytest.fail("ran blocks for nothing"))
    assert joint_of(0.5, state_file=path, **options) == whole
    assert judged[8] == judged[9]
    assert path.exists()  # until its owner has the recipe where it should be
    count = len(judged)
    assert joint_of(0.5, state_file=path, **options) == whole
    assert len(judged) == count


CHANGES = {"tokens": 3 * SEQ_LEN, "rounds": 1, "polish": 1, "lowrank": True, "grouping": "group", "seed": 1}


@pytest.mark.usefixtures("uniform_start")
@pytest.mark.parametrize("name", [*CHANGES, "sparsity", "criterion", "model", "dtype", "calibration"])
def test_the_state_of_another_allocation_is_refused(tmp_path, monkeypatch, name):
    path = tmp_path / "new.allocation"
    joint_of(0.5, state_file=path, **QUICK)
    model, calibration, options = tiny_model("llama"), calibration_of("llama"), QUICK | {"sparsity": 0.5}
    if name == "model":
        with torch.no_grad():
            model.lm_head.weight[0, 0] += 1
    elif name == "dtype":
        model = model.to(torch.bfloat16)
    elif name == "calibration":
        monkeypatch.setattr(calibration, "windows", calibration.windows.flip(0))
    else:
        options |= {name: (CHANGES | {"sparsity": 0.4, "criterion": "column_norm"})[name]}
    # Other weights and another dtype have another fingerprint each: whichever is named, the line is right.
    named = "(dtype|model)" if name == "dtype" else name
    with pytest.raises(RSparseError, match=f"is the state of another allocation: its {named} is"):
        make_recipe(model, "joint", calibration=calibration, state_file=path, **options)


def test_one_score_for_all_from_the_greedy_on(monkeypatch):
    """And no other is tried, so the recipe has it alone."""
    greedy = []

    def levels(model, *args, **more):
        greedy.append(more["criterion"])
        return dict.fromkeys(unit_shapes(model, more["grouping"]), 0.5)

    monkeypatch.setattr(joint, "greedy_levels", levels)
    recipe = joint_of(0.5, criterion="column_norm", **QUICK | {"rounds": 1})
    assert {unit.criterion for unit in recipe.units.values()} == {"column_norm"}
    assert {unit.criterion for unit in joint_of(0.5, criterion="magnitude", **QUICK).units.values()} == {"magnitude"}
    assert greedy == ["column_norm", "magnitude"]


@pytest.mark.parametrize(
    ("grouping", "sparsity"), [("linear", 0.02), ("linear", 0.1), ("group", 0.37), ("group", 0.93), ("group", 0.95)]
)
def test_the_sparsity_is_exact_and_every_unit_within_bounds(grouping, sparsity):
    """TEAL leaves what matters at level 0 below 0.2 or so, and what does not at 0.95 above 0.9."""
    recipe = joint_of(sparsity, grouping=grouping, rounds=1, tokens=2 * SEQ_LEN)
    assert recipe.sparsity == pytest.approx(sparsity, abs=1e-7)
    assert all(LEAST <= unit.sparsity <= MOST for unit in recipe.units.values())
    sparsify(tiny_model("llama"), recipe, calibration_of("llama"))


@pytest.mark.usefixtures("uniform_start")
def test_the_seed_decides():
    first, again, other = (joint_of(0.5, polish=12, seed=seed, **QUICK) for seed in (0, 0, 1))
    assert first == again
    assert first.units != other.units
    assert first.units != joint_of(0.5, **QUICK).units


@pytest.mark.usefixtures("uniform_start")
def test_the_model_is_left_as_it_was(monkeypatch):
    model, calibration = tiny_model("llama"), calibration_of("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_recipe(model, "joint", 0.5, calibration=calibration, **QUICK)
    untouched(model, before)

    def fails(*args):
        raise MemoryError("no room")

    monkeypatch.setattr(CandidateModel, "evaluate", fails)
    with pytest.raises(MemoryError):
        make_recipe(model, "joint", 0.5, calibration=calibration, **QUICK)
    untouched(model, before)


@pytest.mark.parametrize(
    ("sparsity", "options", "says"),
    [
        (0.5, {"calibration": None}, "^method joint needs a calibration$"),
        (0.5, {"calibration": "qwen2"}, "is of another model"),
        (0.0, {}, "method joint starts at sparsity 0.02, got 0.0"),
        (0.019, {}, "method joint starts at sparsity 0.02, got 0.019"),
        (0.96, {}, "ends at sparsity 0.95, got 0.96"),
        (0.5, {"tokens": 0}, "tokens must be 1 or more, got 0"),
        (0.5, {"rounds": -1}, "rounds must be 0 or more, got -1"),
        (0.5, {"polish": "-3"}, "polish must be 0 or more, got -3"),
        (0.5, {"seed": -1}, "seed must be 0 or more, got -1"),
        (0.5, {"lowrank": "perhaps"}, "lowrank must be true or false, got 'perhaps'"),
        (0.5, {"grouping": "heap"}, "grouping must be one of linear, group, got 'heap'"),
        (0.5, {"criterion": "paper"}, "criterion must be one of magnitude, column_norm, got 'paper'"),
        (0.5, {"rho": 0.5}, "method joint takes no option 'rho'"),
    ],
)
def test_refusals(monkeypatch, sparsity, options, says):
    monkeypatch.setattr(joint, "allocate", lambda *args, **options: pytest.fail("worked before it checked"))
    of = options.get("calibration", "llama")
    options = options | {"calibration": of and calibration_of(of)}
    with pytest.raises(RSparseError, match=says) as caught:
        make_recipe(tiny_model("llama"), "joint", sparsity, **options)
    assert "\n" not in str(caught.value)


def test_a_sparse_model_is_refused():
    model, calibration = tiny_model("llama"), calibration_of("llama")
    sparsify(model, uniform(model), calibration)
    with pytest.raises(RSparseError, match="method joint needs the dense model"):
        make_recipe(model, "joint", 0.5, calibration=calibration)
    assert is_sparse(model)
