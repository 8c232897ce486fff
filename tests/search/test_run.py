"""Whole searches on a tiny model: one result, whoever runs them and however often they are interrupted."""

from __future__ import annotations

import copy
import dataclasses
import math
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import rsparse
from rsparse.errors import RSparseError
from rsparse.search import SearchSettings, genome, search
from rsparse.search import run as module
from rsparse.search.candidate import CandidateModel, Fitness
from rsparse.sparse_model import is_sparse
from tests.support.folders import sparse_model
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of, uniform

SETTINGS = SearchSettings(0.5, population=4, generations=3, samples=6)
TOTAL = 12


def searched(storage, settings=SETTINGS, model=None, **options):
    return search(model or tiny_model("llama"), calibration_of("llama"), settings, storage=storage, **options)


def outcome(result):
    return result.recipe, result.fitness, result.sparse_only, result.history


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """Two windows a batch: a candidate can stop after one, two …"""
    monkeypatch.setattr("rsparse.search.candidate.batch_tokens", lambda model: 48)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """(storage, result) of one worker that nobody disturbed: leave them as they are."""
    storage = f"journal:{tmp_path_factory.mktemp('expected')}/study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rsparse.search.candidate.batch_tokens", lambda model: 48)
        return storage, searched(storage)


@pytest.fixture
def evaluating(monkeypatch):
    """Calls `before(number)` ahead of each evaluation; what it returns, if anything, is the fitness."""

    def install(before):
        real, calls = CandidateModel.evaluate, []

        def evaluate(self, recipe, worst=math.inf):
            calls.append(recipe)
            return before(len(calls)) or real(self, recipe, worst)

        monkeypatch.setattr(CandidateModel, "evaluate", evaluate)
        return calls

    return install


def done(storage, settings=SETTINGS):
    found = module._Search(tiny_model("llama"), calibration_of("llama"), settings, storage, "search", print)
    return found, found.study.done()


def test_the_best_is_the_minimum_over_all_that_were_evaluated(expected):
    storage, result = expected
    found, slots = done(storage)
    assert sorted(slots) == [(generation, index) for generation in range(3) for index in range(4)]
    base = found.recipe(np.zeros(14))
    candidates = CandidateModel(tiny_model("llama"), base, calibration_of("llama"), found.windows, "perplexity")
    fitness = {slot: candidates.evaluate(found.recipe(np.array(each.genome))).value for slot, each in slots.items()}
    best = min(fitness, key=lambda slot: (fitness[slot], slot))
    assert result.fitness == fitness[best] == min(fitness.values())
    assert [unit.rho for unit in result.recipe.units.values()] == slots[best].genome
    assert result.sparse_only == fitness[0, 0] == candidates.evaluate(uniform(candidates.model, criterion="paper")).value
    for slot, each in slots.items():
        assert result.fitness < each.value <= fitness[slot] if each.stopped else each.value == fitness[slot]
    assert any(each.stopped for each in slots.values())
    assert result.history == [min(fitness[slot] for slot in slots if slot[0] <= last) for last in range(3)]
    assert result.history == sorted(result.history, reverse=True)
    assert result.history[-1] == result.fitness < result.sparse_only
    assert result.evaluations == TOTAL


def test_each_generation_follows_from_the_fittest_of_all_before(expected):
    found, slots = done(expected[0])
    everyone = []
    for generation in range(3):
        parents = [np.array(each.genome) for each in sorted(everyone, key=lambda each: each.value)[:4]]
        for index in range(4):
            own = slots[generation, index]
            made = (
                genome.child(0, generation, index, parents, found.groups)
                if generation
                else genome.initial(0, index, 4, found.groups)
            )
            assert own.genome == made.tolist()
        everyone += [slots[generation, index] for index in range(4) if not slots[generation, index].stopped]
    assert found.groups == [0, 1, 2, 3, 4, 5, 6] * 2


def test_windows_are_spread_over_the_text(expected):
    windows = calibration_of("llama").windows
    assert torch.equal(done(expected[0])[0].windows, windows[[round(i * (len(windows) - 1) / 5) for i in range(6)]])


def test_the_recipe_is_one_that_sparsify_takes(expected):
    recipe = expected[1].recipe
    assert (recipe.method, recipe.grouping, recipe.fit, recipe.settled) == ("rsparse", "linear", "svd", False)
    assert {unit.criterion for unit in recipe.units.values()} == {"paper"}
    assert recipe.sparsity == pytest.approx(0.5)
    model = tiny_model("llama")
    rsparse.sparsify(model, recipe, calibration_of("llama"))
    assert is_sparse(model)


def test_the_model_is_as_it_was(journal):
    model, ids = tiny_model("llama"), calibration_of("llama").windows[:2]
    before = model(ids).logits
    searched(journal, model=model)
    assert not is_sparse(model)
    assert torch.equal(model(ids).logits, before)


def test_two_workers_find_the_same(expected, storage, evaluating):
    results, together, arrived = {}, threading.Barrier(2, timeout=30), set()

    def before(number):
        if threading.get_ident() not in arrived:  # both have a slot before either goes on
            arrived.add(threading.get_ident())
            together.wait()

    def work(name):
        results[name] = searched(storage, model=models[name])

    evaluating(before)
    models = {name: tiny_model("llama") for name in "ab"}
    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcome(results["a"]) == outcome(results["b"]) == outcome(expected[1])
    assert sum(result.evaluations for result in results.values()) == TOTAL
    assert all(result.evaluations for result in results.values())


def test_a_finished_search_gives_its_result_without_work(expected, monkeypatch):
    monkeypatch.setattr(module, "CandidateModel", None)
    again = searched(expected[0], model=tiny_model("llama"))
    assert outcome(again) == outcome(expected[1])
    assert again.evaluations == 0


KILLED = """
import sys, time
from rsparse.search.candidate import CandidateModel
from tests.search.test_run import searched
import rsparse.search.candidate as candidate
candidate.batch_tokens = lambda model: 48
real, calls = CandidateModel.evaluate, []
def evaluate(self, *arguments):
    calls.append(None)
    if len(calls) > 6:
        print("stuck", flush=True)
        time.sleep(600)
    return real(self, *arguments)
CandidateModel.evaluate = evaluate
searched(sys.argv[1])
"""


def test_after_a_kill_only_what_was_in_flight_is_lost(expected, tmp_path, evaluating):
    storage = f"sqlite:///{tmp_path}/study"
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, storage], stdout=subprocess.PIPE, cwd=root, text=True)
    try:
        assert process.stdout.readline() == "stuck\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(done(storage)[1]) == 6  # one and a half generations
    calls, start = evaluating(lambda number: None), time.perf_counter()
    result = searched(storage)
    assert len(calls) == result.evaluations == TOTAL - 6
    assert outcome(result) == outcome(expected[1])
    assert time.perf_counter() - start < 20  # it waited for nobody


def test_stopping_early_changes_nothing(expected, journal, monkeypatch):
    real = CandidateModel.evaluate
    monkeypatch.setattr(CandidateModel, "evaluate", lambda self, recipe, worst=math.inf: real(self, recipe))
    result = searched(journal)
    assert outcome(result) == outcome(expected[1])
    slots = done(journal)[1]
    assert not any(each.stopped for each in slots.values())
    assert {slot: each.genome for slot, each in slots.items()} == {
        slot: each.genome for slot, each in done(expected[0])[1].items()
    }


def test_no_candidate_of_the_first_generation_stops(journal, monkeypatch):
    asked, real = [], CandidateModel.evaluate

    def evaluate(self, recipe, worst=math.inf):
        asked.append(worst)
        return real(self, recipe, worst)

    monkeypatch.setattr(CandidateModel, "evaluate", evaluate)
    searched(journal)
    slots = done(journal)[1]
    first = sorted(slots[0, index].value for index in range(4))
    assert asked[:4] == [math.inf] * 4
    assert asked[4:8] == [first[-1]] * 4
    second = sorted(first + [slots[1, index].value for index in range(4) if not slots[1, index].stopped])
    assert asked[8:] == [second[3]] * 4


def test_a_fitness_that_is_not_finite_leaves_the_study_intact(expected, storage, evaluating):
    bad = [3]
    calls = evaluating(lambda number: Fitness(math.nan, 1) if number in bad else None)
    model = tiny_model("llama")
    with pytest.raises(RSparseError, match="fitness of candidate"):
        searched(storage, model=model)
    assert not is_sparse(model)
    assert len(done(storage)[1]) == 2
    bad.clear()
    assert outcome(searched(storage)) == outcome(expected[1])
    assert len(calls) == TOTAL + 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_worker_leaves_its_slot_to_others(expected, journal, evaluating, error):
    def before(number):
        if number == 6:
            raise error

    evaluating(before)
    model = tiny_model("llama")
    with pytest.raises(error):
        searched(journal, model=model)
    assert not is_sparse(model)
    start = time.perf_counter()
    result = searched(journal, model=model)  # the process lives on: nothing but FAIL frees its slot at once
    assert time.perf_counter() - start < 20
    assert result.evaluations == TOTAL - 5
    assert outcome(result) == outcome(expected[1])


def test_a_worker_that_fails_before_its_first_candidate_leaves_its_slot_too(journal, monkeypatch):
    def failing(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(module, "CandidateModel", failing)
        with pytest.raises(MemoryError):
            searched(journal)
    assert searched(journal).evaluations == TOTAL


def test_a_slot_is_signed_while_the_factors_are_made(journal, monkeypatch):
    """Factors of an 8B model may take longer than a lease."""
    monkeypatch.setattr("rsparse.search.study.SIGN_SECONDS", 0.02)
    signed, real = [], CandidateModel.__init__

    def slow(self, *arguments):
        for _ in range(2):
            time.sleep(0.15)
            signed.append(done(journal)[0].study._trials()[0].user_attrs["signed"])
        real(self, *arguments)

    monkeypatch.setattr(CandidateModel, "__init__", slow)
    searched(journal)
    assert signed[1] > signed[0]


def test_a_storage_that_goes_in_the_middle(expected, storage, tmp_path, evaluating, monkeypatch):
    file, kept = tmp_path / "study", []

    def before(number):
        if number == 6 and not kept:
            kept.append(file.read_bytes())
            file.unlink()

    evaluating(before)
    model = tiny_model("llama")
    with pytest.raises(RSparseError, match="storage"):
        searched(storage, model=model)
    assert not is_sparse(model)
    file.write_bytes(kept[0])
    monkeypatch.setattr("rsparse.search.study.LEASE_SECONDS", 0.0)  # this process lives, and the file says that it works
    result = searched(storage)
    assert result.evaluations == TOTAL - 5
    assert outcome(result) == outcome(expected[1])


@pytest.mark.parametrize("change", ["windows", "sinks", "dtype", "weights", "population"])
def test_a_study_of_another_search_is_refused(expected, change):
    model, calibration, settings = tiny_model("llama"), copy.copy(calibration_of("llama")), SETTINGS
    if change == "windows":  # as of another seed or length: the label is the same
        calibration.windows = calibration.windows.flip(1)
    elif change == "sinks":
        calibration.meta = dataclasses.replace(calibration.meta, sink_tokens=2)
    elif change == "dtype":
        model = model.double()
    elif change == "weights":
        model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    else:
        settings = dataclasses.replace(SETTINGS, population=5)
    with pytest.raises(RSparseError, match="is of another search: its ") as caught:
        search(model, calibration, settings, storage=expected[0])
    assert "\n" not in str(caught.value)
    assert not is_sparse(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "kl"},
        {"fit": "dropped"},
        {"grouping": "group", "criterion": "column_norm"},
        {"grouping": "group", "fit": "dropped", "objective": "kl", "seed": 3},
        {"criterion": "magnitude", "sparsity": 0.7, "seed": 1},
    ],
    ids=str,
)
def test_other_settings(journal, changes):
    settings = dataclasses.replace(SETTINGS, generations=2, **changes)
    result = searched(journal, settings)
    assert result.evaluations == 8
    assert 0 < result.fitness <= result.sparse_only
    recipe = result.recipe
    assert (recipe.grouping, recipe.fit) == (settings.grouping, settings.fit)
    assert recipe.sparsity == pytest.approx(settings.sparsity)
    assert {unit.criterion for unit in recipe.units.values()} == {settings.criterion}
    assert len(recipe.units) == (8 if settings.grouping == "group" else 14)
    assert max(len(unit.linears) for unit in recipe.units.values()) == (3 if settings.grouping == "group" else 1)
    rsparse.sparsify(tiny_model("llama"), recipe, calibration_of("llama"))


def test_seeds_differ(expected, journal):
    assert searched(journal, dataclasses.replace(SETTINGS, seed=1)).recipe != expected[1].recipe


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *[({"sparsity": value}, "between 0 and 1") for value in (0, 1, -0.5, 1.5, math.nan, math.inf)],
        ({"population": 1}, "population must be 2 or more, got 1"),
        ({"generations": 0}, "generations must be 1 or more, got 0"),
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"objective": "taste"}, "objective must be one of perplexity, kl, got 'taste'"),
        ({"fit": "tight"}, "fit must be one of svd, dropped, got 'tight'"),
        ({"grouping": "heap"}, "grouping must be one of linear, group, got 'heap'"),
        ({"criterion": "taste"}, "criterion 'taste' is unknown; choose one of "),
        ({"criterion": "residual_norm"}, "residual_norm"),
    ],
    ids=str,
)
def test_settings_out_of_range(changes, says):
    with pytest.raises(RSparseError, match=says.replace("[", r"\[")):
        dataclasses.replace(SETTINGS, **changes)


def test_what_cannot_be_searched(journal, tmp_path):
    with pytest.raises(RSparseError, match="dense model"):
        searched(journal, model=sparse_model("llama"))
    with pytest.raises(RSparseError, match="another model"):
        searched(journal, model=tiny_model("qwen2"))
    with pytest.raises(RSparseError, match="64 windows, and the search samples 65"):
        searched(journal, dataclasses.replace(SETTINGS, samples=65))
    assert not list(tmp_path.iterdir())


def test_reports(journal, expected):
    reports = []
    result = searched(journal, report=reports.append)
    assert [each.done for each in reports] == list(range(1, TOTAL + 1))
    assert [each.generation for each in reports] == [0] * 4 + [1] * 4 + [2] * 4
    assert {each.total for each in reports} == {TOTAL}
    assert reports[-1].best == result.fitness
    assert [reports[last].best for last in (3, 7, 11)] == expected[1].history
    assert reports[-1].seconds_left == 0
    assert all(each.per_minute > 0 for each in reports)
    assert reports[5].seconds_left == pytest.approx((TOTAL - 6) / reports[5].per_minute * 60)


def test_reports_count_what_others_do(journal, evaluating):
    """Another worker does one candidate for each of this one's: the rate is of both, of what was there before nothing."""
    settings = dataclasses.replace(SETTINGS, population=10, generations=1)
    other, _ = done(journal, settings)

    def work(number=0):
        other.study.claim(0, 10)
        other.study.tell([1.0] * 14, 9.0, False)

    work()
    work()
    evaluating(work)
    reports, moments = [], []
    start = time.perf_counter()
    searched(journal, settings, report=lambda each: (reports.append(each), moments.append(time.perf_counter() - start)))
    assert [each.done for each in reports] == [4, 6, 8, 10]
    # Eight since it began; the time before the first candidate is not counted.
    assert reports[-1].per_minute / 60 * moments[-1] >= 8
    assert reports[1].seconds_left == pytest.approx(4 / reports[1].per_minute * 60)
