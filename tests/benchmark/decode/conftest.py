"""The records of one decode bench."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmark.decode.benches import bench


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of CELLS: leave them as they are."""
    folder = tmp_path_factory.mktemp("bench")
    bench(folder).run()
    return folder
