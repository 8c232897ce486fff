"""Moves at equal bytes: on fitness made by hand, whose minimum is known, and on tiny models."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from rsparse.errors import RSparseError
from rsparse.models.layout import unit_shapes
from rsparse.recipe import UnitRecipe
from rsparse.search import allocation as module
from rsparse.search.allocation import LEAST, MOST, Choice, allocate
from rsparse.search.candidate import CandidateModel, Fitness
from rsparse.sparse_model import is_sparse
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import SEQ_LEN, calibration_of

KINDS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WHOLE = {"grouping": "linear", "tokens": 4 * SEQ_LEN, "rounds": 2, "polish": 0, "criteria": ("column_norm",), "seed": 0}
STARTS = {
    "uniform": lambda count: np.full(count, 0.5),
    "at bounds": lambda count: np.resize([LEAST, MOST, 0.5, 0.4], count),
    "beyond bounds": lambda count: np.resize([0.0, 0.99, 0.0, 0.6], count),
    "nearly all": lambda count: np.resize([0.95, 0.95, 0.94, 0.95], count),
    "nearly nothing": lambda count: np.resize([0.02, 0.02, 0.05], count),
}


def kind(name):
    return name.rpartition(".")[2]


def sizes_of(model, grouping="linear"):
    return {name: sum(outs.values()) * size for name, (outs, size) in unit_shapes(model, grouping).items()}


def start_of(model, levels=0.5, grouping="linear"):
    """One level for all units, or an array."""
    names = list(unit_shapes(model, grouping))
    return {name: Choice(float(level)) for name, level in zip(names, np.broadcast_to(levels, len(names)), strict=True)}


def total(units, sizes):
    return sum(each.sparsity * sizes[name] for name, each in units.items())


def allocated(model, start=None, lowrank=True, **options):
    start = start_of(model, grouping=options.get("grouping", "linear")) if start is None else start
    return allocate(model, calibration_of(model.config.model_type), start, lowrank=lowrank, **(WHOLE | options))


@pytest.fixture
def judging(monkeypatch):
    """Fitness by `value(units)` in place of forward passes; the list holds (units, the base's units) of each."""

    def install(value):
        judged = []

        def evaluate(self, recipe, worst=float("inf")):
            judged.append((recipe.units, self.base.units))
            return Fitness(value(recipe.units), 1)

        monkeypatch.setattr(CandidateModel, "evaluate", evaluate)
        return judged

    return install


@contextlib.contextmanager
def opened(levels=0.5):
    """An allocation of the tiny Llama, to move by hand."""
    model = tiny_model("llama")
    search = module._Allocation(model, calibration_of("llama"), start_of(model, levels), "linear", SEQ_LEN, False)
    search._bar = module.progress(0, "")
    search.kl = search._judge(search.choices)
    try:
        yield search
    finally:
        search.candidates.close()


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


def pulling(seed=0):
    """A bowl with its bottom far from any start, in which low rank is welcome everywhere."""
    random = np.random.default_rng(seed)
    targets, weights = random.choice([-0.3, 0.1, 1.2], 14), random.uniform(0.5, 2, 14)

    def value(units):
        levels = np.array([each.sparsity for each in units.values()])
        return float(1 + weights @ (levels - targets) ** 2) * np.mean([each.rho for each in units.values()])

    return value


@pytest.mark.parametrize("start", STARTS)
def test_every_candidate_has_the_starts_bytes_and_each_level_its_bounds(judging, start):
    model, judged = tiny_model("llama"), judging(pulling())
    sizes, given = sizes_of(model), start_of(model, STARTS[start](14))
    found = allocated(model, given, polish=30, rounds=3)
    budget = total(given, sizes)
    assert len(judged) == found.evaluations > 90
    for units in (*(units for units, _ in judged), found.choices):
        assert total(units, sizes) == pytest.approx(budget, rel=1e-6)
        assert all(LEAST <= each.sparsity <= MOST for each in units.values())
    course = list(found.course.values())
    assert course == sorted(course, reverse=True)
    if start not in ("nearly all", "nearly nothing"):
        assert course[0] > course[1] > course[2]  # it moves at all


@pytest.mark.parametrize("start", STARTS)
def test_no_rank_is_more_than_the_bases(judging, start):
    """Or candidates would be judged with fewer ranks than they are charged for."""
    model, judged = tiny_model("llama"), judging(pulling())
    allocated(model, start_of(model, STARTS[start](14)), polish=10, rounds=4)
    for units, base in judged:
        assert all(rank <= base[name].rank for name, each in units.items() for rank in each.ranks)
    if start == "uniform":
        assert any(each.rank for each in judged[-1][0].values())


@pytest.mark.parametrize("sparsity", [LEAST, 0.5, MOST])
def test_the_bases_ranks_fit_a_units_bytes_at_every_level(sparsity):
    """Those of a real size: 0.0586 of [512, 512] at LEAST, and a unit at MOST leaves 0.05."""
    wide = module._Allocation._widest(None, UnitRecipe.uniform({"q": 512}, 512, sparsity))
    assert wide.ranks == UnitRecipe.uniform({"q": 512}, 512, LEAST, 0.94).ranks == (15,)
    assert wide.kept_share > 0


@pytest.mark.parametrize(("mean", "levels"), [("0.97", 0.97), ("0.01", 0.01), ("0.96", np.resize([0.95, 0.97], 14))])
def test_levels_without_room_are_refused(mean, levels):
    model = tiny_model("llama")
    with pytest.raises(RSparseError, match=rf"between sparsity 0.02 and 0.95 in the mean, got {mean}"):
        allocated(model, start_of(model, levels))
    assert not is_sparse(model)


def product(**gains):
    """Fitness 1 times each kind's gain: `q_proj=(0.99, 1, 1)` by column norm, rho 0.97 and rho 0.94."""

    def value(units):
        result = 1.0
        for name, each in units.items():
            norm, first, second = gains.get(kind(name), (1, 1, 1))
            factor = (norm if each.criterion == "column_norm" else 1) * {1.0: 1, 0.97: first, 0.94: second}[each.rho]
            result *= factor**0.5  # two blocks
        return result

    return value


def test_a_score_is_taken_by_kind_where_it_gains_enough(judging):
    judging(product(q_proj=(0.9975, 1, 1), k_proj=(0.9985, 1, 1), v_proj=(1.01, 1, 1), down_proj=(0.9, 1, 1)))
    found = allocated(tiny_model("llama"), rounds=0)
    taken = {name for name, each in found.choices.items() if each.criterion == "column_norm"}
    assert taken == {name for name in found.choices if kind(name) in ("q_proj", "down_proj")}
    assert {each.criterion for each in found.choices.values()} == {"column_norm", "magnitude"}
    assert found.course["column_norm"] == pytest.approx(0.9975 * 0.9)
    assert allocated(tiny_model("llama"), rounds=0, criteria=()).course["rho 0.94"] == 1


def test_low_rank_is_taken_by_kind_and_more_of_it_where_the_first_share_gained(judging):
    gains = {
        "gate_proj": (1, 0.99, 0.98),
        "up_proj": (1, 0.99, 0.9895),  # the second share gains half a thousandth
        "down_proj": (1, 0.9985, 0.5),  # the first gains too little, so that the second is never asked for
        "q_proj": (1, 1.01, 1.02),
    }
    judged = judging(product(**gains))
    found = allocated(tiny_model("llama"), rounds=0)
    rhos = {kind(name): each.rho for name, each in found.choices.items()}
    assert rhos == dict.fromkeys(KINDS, 1.0) | {"gate_proj": 0.94, "up_proj": 0.97}
    assert len(judged) == 1 + 7 + 7 + 2
    none = allocated(tiny_model("llama"), rounds=0, lowrank=False)
    assert {each.rho for each in none.choices.values()} == {1.0}
    assert list(none.course) == ["start", "column_norm"]


def test_polish_keeps_only_what_is_better_and_is_a_function_of_the_seed(judging):
    model = tiny_model("llama")
    judged = judging(pulling())
    found = allocated(model, rounds=0, criteria=(), lowrank=False, polish=40)
    best = np.minimum.accumulate([pulling()(units) for units, _ in judged])
    assert found.course == {"start": best[0], "units": best[-1]}
    assert pulling()(judged[int(np.argmin([pulling()(units) for units, _ in judged]))][0]) == found.course["units"]
    assert 2 < len(set(best)) < 41  # some are kept, and not all
    again = allocated(model, rounds=0, criteria=(), lowrank=False, polish=40)
    other = allocated(model, rounds=0, criteria=(), lowrank=False, polish=40, seed=1)
    assert again == found
    assert other.choices != found.choices
    judging(lambda units: 1.0)
    assert allocated(model, polish=10).choices == start_of(model)  # equal is not better


def snapshot(model):
    return {name: (type(module), module._forward_pre_hooks.copy()) for name, module in model.named_modules()}, {
        name: tensor.clone() for name, tensor in model.state_dict().items()
    }


def assert_untouched(model, before):
    modules, tensors = before
    assert not is_sparse(model)
    assert {name: (type(module), module._forward_pre_hooks) for name, module in model.named_modules()} == modules
    now = model.state_dict()
    assert list(now) == list(tensors)
    assert all(torch.equal(now[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(("model_type", "grouping"), [("llama", "linear"), ("qwen2", "group"), ("gemma3_text", "group")])
def test_a_real_model(model_type, grouping):
    model, ids = tiny_model(model_type), token_ids(2, SEQ_LEN)
    before, logits = snapshot(model), model(ids).logits
    found = allocated(model, grouping=grouping, polish=3)
    assert_untouched(model, before)
    assert torch.equal(model(ids).logits, logits)
    course = list(found.course.values())
    assert list(found.course) == ["start", "groups 1", "groups 2", "column_norm", "rho 0.97", "rho 0.94", "units"]
    assert course == sorted(course, reverse=True)
    assert course[-1] < course[0]
    sizes = sizes_of(model, grouping)
    assert total(found.choices, sizes) == pytest.approx(0.5 * sum(sizes.values()), rel=1e-6)
    if grouping == "group":
        assert {kind(name) for name in found.choices} == {"qkv", "o", "gate_up", "down"}


@pytest.mark.parametrize("number", [1, 20])
def test_the_model_is_dense_again_after_an_exception(judging, number):
    model, ids = tiny_model("llama"), token_ids(2, SEQ_LEN)
    before, logits = snapshot(model), model(ids).logits
    judged = []

    def value(units):
        judged.append(units)
        if len(judged) == number:
            raise KeyboardInterrupt
        return 1.0

    judging(value)
    with pytest.raises(KeyboardInterrupt):
        allocated(model)
    assert_untouched(model, before)
    assert torch.equal(model(ids).logits, logits)


@pytest.mark.parametrize(("tokens", "windows"), [(1, 1), (4 * SEQ_LEN, 4), (1 << 20, None)])
def test_the_windows_that_judge_are_from_all_over_the_text(monkeypatch, tokens, windows):
    seen, real = [], CandidateModel.evaluate

    def evaluate(self, recipe, worst=float("inf")):
        seen.append(self.windows)
        return real(self, recipe, worst)

    monkeypatch.setattr(CandidateModel, "evaluate", evaluate)
    allocated(tiny_model("llama"), tokens=tokens, rounds=0, criteria=(), lowrank=False)
    every = calibration_of("llama").windows
    picked = {1: [0], 4: [0, 21, 42, 63], None: range(len(every))}[windows]
    assert torch.equal(seen[0], every[list(picked)])


class Bar:
    def __init__(self, total):
        self.total, self.done = total, 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, count=1):
        self.done += count


@pytest.mark.parametrize("lowrank", [True, False])
@pytest.mark.parametrize("welcome", [True, False])
def test_the_bar_counts_evaluations_and_promises_enough(judging, monkeypatch, lowrank, welcome):
    bars = []
    monkeypatch.setattr(module, "progress", lambda total, label, unit: bars.append(Bar(total)) or bars[-1])
    judging(pulling() if welcome else lambda units: 1.0)
    found = allocated(tiny_model("llama"), lowrank=lowrank, polish=5)
    (bar,) = bars
    assert found.evaluations == bar.done <= bar.total
    assert (bar.done == bar.total) == (welcome or not lowrank)
