"""A small search that several test files run."""

from __future__ import annotations

from rsparse.search import SearchSettings, search
from rsparse.search import run as module
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of

SETTINGS = SearchSettings(0.5, population=4, generations=3, samples=6)
TOTAL = 12


def searched(storage, settings=SETTINGS, model=None, **options):
    return search(model or tiny_model("llama"), calibration_of("llama"), settings, storage=storage, **options)


def outcome(result):
    return result.recipe, result.fitness, result.sparse_only, result.history


def done(storage, settings=SETTINGS):
    found = module._Search(tiny_model("llama"), calibration_of("llama"), settings, storage, "search", print)
    return found, found.study.done()
