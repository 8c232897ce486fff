"""Storages for studies."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest


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
