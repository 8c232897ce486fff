"""A folder to bench in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.models import text_file


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """calibration text, two test texts, and a folder with one task of choices."""
    text_file(tmp_path, 500, seed=1).rename(tmp_path / "calibration.txt")
    text_file(tmp_path, 120, seed=2).rename(tmp_path / "one.txt")
    text_file(tmp_path, 100, seed=3).rename(tmp_path / "two.txt")
    (tmp_path / "tasks").mkdir()
    rows = [{"context": f"the river {i}", "choices": ["stone", "light and bread", "her"], "label": i % 3} for i in range(6)]
    (tmp_path / "tasks" / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path
