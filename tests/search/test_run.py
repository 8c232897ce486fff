"""Whole searches on a tiny model: one result, whoever runs them."""

from __future__ import annotations

import dataclasses
import math
import statistics
import threading
import time

import numpy as np
import pytest
import torch

import rsparse
from rsparse.search import genome
from rsparse.search import run as module
from rsparse.search.candidate import CandidateModel
from rsparse.sparse_model import is_sparse
from tests.search.searches import SETTINGS, TOTAL, done, outcome, searched
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of, uniform

pytestmark = pytest.mark.usefixtures("small_batches")


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


def test_what_it_cost(expected, journal, evaluating):
    """Two runs: the factors are made twice, and all the time of both is counted."""
    storage, result = expected
    slots = done(storage)[1].values()
    assert result.cost.candidates == TOTAL
    assert result.cost.stopped == sum(each.stopped for each in slots) > 0
    assert result.cost.candidate_seconds == statistics.median(each.seconds for each in slots if not each.stopped)
    assert [each.factors_seconds > 0 for each in done(storage)[1].values()].count(True) == 1
    assert all(0 < each.seconds <= each.elapsed for each in slots)
    assert result.cost.seconds == pytest.approx(sum(each.elapsed for each in slots))
    assert sum(each.seconds + each.factors_seconds for each in slots) < result.cost.seconds <= result.seconds

    class KilledError(Exception):
        pass

    def before(number):
        if number == 6:
            raise KilledError

    evaluating(before)
    with pytest.raises(KilledError):
        searched(journal)
    second = searched(journal)
    made = [each.factors_seconds for each in done(journal)[1].values() if each.factors_seconds]
    assert len(made) == 2
    assert second.cost.factors_seconds == pytest.approx(sum(made) / 2)
    assert second.cost.candidates == TOTAL > second.evaluations
    assert second.cost.seconds == pytest.approx(sum(each.elapsed for each in done(journal)[1].values()))
