"""Storages for studies, and one search that nobody disturbed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import optuna
import pytest

from rsparse.search.candidate import CandidateModel, Fitness
from tests.search.searches import searched


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with Optuna's tables and no study: to make them takes 0.3 s."""
    path = tmp_path_factory.mktemp("tables") / "study"
    optuna.storages.RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path


@pytest.fixture
def sqlite(tmp_path: Path, tables: Path) -> str:
    shutil.copy(tables, tmp_path / "study")
    return f"sqlite:///{tmp_path}/study"


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return f"journal:{tmp_path}/study"


@pytest.fixture(params=["sqlite", "journal"])
def storage(request: pytest.FixtureRequest) -> str:
    """The file `study` in tmp_path, as either."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def small_batches(monkeypatch):
    """Two windows a batch: a candidate can stop after one, two …"""
    monkeypatch.setattr("rsparse.losses.batch_tokens", lambda model: 48)


@pytest.fixture(scope="session")
def expected(tmp_path_factory):
    """(storage, result) of one worker that nobody disturbed: leave them as they are."""
    storage = f"journal:{tmp_path_factory.mktemp('expected')}/study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rsparse.losses.batch_tokens", lambda model: 48)
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
