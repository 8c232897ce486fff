"""Searches of several populations: records against the search itself, and what a second run does."""

from __future__ import annotations

import dataclasses
import json

import pytest

from rsparse.benchmark.search import SearchBench, record_file, storage_of
from rsparse.errors import RSparseError
from rsparse.recipe import Recipe
from rsparse.search import SearchSettings, search
from rsparse.search.run import Cost
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of

SETTINGS = SearchSettings(0.5, generations=3, samples=6, seed=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of populations 4 and 3: leave them as they are."""
    folder = tmp_path_factory.mktemp("bench")
    lines = []
    bench(folder, [4, 3], say=lines.append).run()
    (folder / "lines").write_text("\n".join(lines))
    return folder


def load():
    return tiny_model("llama"), calibration_of("llama")


def bench(folder, populations, settings=SETTINGS, load=load, **more):
    return SearchBench(populations, settings, folder, load, {"model": "tiny"}, **more)


def read(folder, population):
    return json.loads(record_file(folder, population).read_text())


def test_a_record_is_what_the_search_finds(folder, tmp_path):
    for population in (4, 3):
        settings = dataclasses.replace(SETTINGS, population=population)
        alone = search(*load(), settings, storage=f"journal:{tmp_path}/{population}")
        config, metrics = read(folder, population)["config"], read(folder, population)["metrics"]
        assert {name: config[name] for name in dataclasses.asdict(settings)} == dataclasses.asdict(settings)
        assert (config["suite"], config["preset"], config["method"], config["model"]) == (
            "search",
            "searched",
            "rsparse",
            "tiny",
        )
        assert (config["seq_len"], config["sink_tokens"], config["dtype"]) == (24, 1, "float32")
        assert config["calibration"] == calibration_of("llama").meta.label
        assert config["weights_sha"] == calibration_of("llama").meta.weights_sha
        assert config["recipe_sha"] == alone.recipe.sha() == Recipe.load(folder / f"recipe-{population}.json").sha()
        assert metrics["history"] == alone.history
        assert (metrics["fitness"], metrics["sparse_only_fitness"]) == (alone.fitness, alone.sparse_only)
        assert metrics["evaluations"] == 3 * population
        assert metrics["stopped_early"] == pytest.approx(alone.cost.stopped / alone.cost.candidates, abs=1e-4)
        assert metrics["tokens_per_candidate"] == 6 * 24
        assert 0 < metrics["seconds_per_candidate"] < metrics["search_seconds"]
        assert 0 < metrics["factors_seconds"] < metrics["search_seconds"]
        assert "peak_gpu_bytes" not in metrics
        assert read(folder, population)["env"]["backend"] == "reference"


def test_it_says_what_each_cost(folder):
    four, three = (folder / "lines").read_text().splitlines()
    assert four.startswith("population 4: 12 candidates in ")
    assert three.startswith("population 3: 9 candidates in ")
    assert " s a candidate; " in four


def test_what_has_its_record_is_left_alone(folder):
    again = bench(folder, [4, 3], load=lambda: pytest.fail("loaded"))
    assert again.missing() == []
    before = record_file(folder, 4).read_bytes()
    again.run()
    assert record_file(folder, 4).read_bytes() == before


def test_a_killed_one_goes_on_and_the_model_is_loaded_once(tmp_path):
    class KilledError(Exception):
        pass

    loaded = []

    def counting():
        loaded.append(1)
        return load()

    def report(population, progress):
        if (population, progress.done) == (3, 5):
            raise KilledError

    with pytest.raises(KilledError):
        bench(tmp_path, [2, 3], load=counting, report=report).run()
    assert loaded == [1]
    assert (record_file(tmp_path, 2).exists(), record_file(tmp_path, 3).exists()) == (True, False)
    seen = []
    second = bench(tmp_path, [2, 3], report=lambda population, progress: seen.append((population, progress.done)))
    assert [each.population for each in second.missing()] == [3]
    second.run()
    assert seen == [(3, done) for done in range(6, 10)]
    assert read(tmp_path, 3)["metrics"]["evaluations"] == 9
    assert storage_of(tmp_path, 3) == f"sqlite:///{tmp_path}/population-3.db"


def test_metrics_are_of_all_sessions(tmp_path, monkeypatch):
    import rsparse.benchmark.search as module

    real = module.search

    def expensive(*arguments, **options):
        cost = Cost(candidates=6, stopped=3, seconds=100.0, factors_seconds=7.0, candidate_seconds=2.5)
        return dataclasses.replace(real(*arguments, **options), cost=cost, seconds=1.0, evaluations=1)

    monkeypatch.setattr(module, "search", expensive)
    bench(tmp_path, [2]).run()
    metrics = read(tmp_path, 2)["metrics"]
    names = ("evaluations", "search_seconds", "factors_seconds", "seconds_per_candidate", "stopped_early")
    assert [metrics[name] for name in names] == [6, 100.0, 7.0, 2.5, 0.5]


def test_populations_that_cannot_be():
    with pytest.raises(RSparseError, match="population 8 is named twice"):
        bench(None, [8, 4, 8])
    with pytest.raises(RSparseError, match="population must be 2 or more, got 1"):
        bench(None, [8, 1])
