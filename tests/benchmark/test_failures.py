"""The note of a failed cell: what it says, and when it goes."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from rsparse.benchmark import failures, workbench
from rsparse.errors import RSparseError
from tests.benchmark.benches import Bench, grid


def test_a_cell_that_fails_leaves_a_note_until_it_has_its_record(files, monkeypatch):
    wanted = {"texts": [str(files / "one.txt")], "tasks": False}
    real = workbench.evaluate

    def broken(*arguments, **options):
        raise RuntimeError("out of memory\nwith many lines")

    monkeypatch.setattr(workbench, "evaluate", broken)
    bench = Bench(files, grid(files, **wanted))
    assert len(bench.run()) == 2
    record = bench.out / "tiny" / "sparse_only-s0.4-all-one.json"
    assert sorted(path.name for path in record.parent.iterdir()) == ["dense-all-one.failed", "sparse_only-s0.4-all-one.failed"]
    found = json.loads(record.with_suffix(".failed").read_text())
    assert found["cell"] == "tiny sparse_only 40% all one.txt"
    assert found["reason"] == "RuntimeError: out of memory with many lines"
    assert datetime.now(timezone.utc) - datetime.fromisoformat(found["date"]) < timedelta(minutes=5)

    monkeypatch.setattr(workbench, "evaluate", real)
    assert Bench(files, grid(files, **wanted)).run() == []
    assert sorted(path.name for path in record.parent.iterdir()) == ["dense-all-one.json", "sparse_only-s0.4-all-one.json"]


def test_the_last_failure_is_told_and_none_beside_a_record(tmp_path):
    record = tmp_path / "a" / "rsparse-rho0.9-s0.5-all-one.json"
    assert failures.failure(record) is None
    failures.note(record, "a", "first")
    failures.note(record, "a", "second")
    assert failures.failure(record) == "second"
    record.write_text("{}")
    assert failures.failure(record) is None


def test_a_note_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    failures.note(tmp_path / "file" / "cell.json", "a", "the disk is full")


def test_a_damaged_note_is_named(tmp_path):
    (tmp_path / "cell.failed").write_text("{")
    with pytest.raises(RSparseError, match=r"cell.failed is no note of a failure"):
        failures.failure(tmp_path / "cell.json")
