"""The record that every figure comes from (docs: schema 1)."""

from __future__ import annotations

import datetime
import json
import re
import sys

import pytest

import rsparse
from rsparse import records
from rsparse.errors import RSparseError


def test_the_schema(tmp_path):
    run = records.Run()
    found = run.record({"model": "tiny"}, {"perplexity": 2.5}, backend="reference")
    records.write(tmp_path / "new" / "out.json", found)
    text = (tmp_path / "new" / "out.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == found
    assert list(found) == ["schema", "run", "env", "config", "metrics"]
    assert found["schema"] == 1
    assert sorted(found["run"]) == ["command", "commit", "date", "seconds"]
    assert {"cpu", "gpu", "torch", "transformers", "rsparse", "backend", "threads", "python"} == set(found["env"])
    assert found["env"]["backend"] == "reference"
    assert found["env"]["rsparse"] == rsparse.__version__
    assert found["config"] == {"model": "tiny"}
    assert found["metrics"] == {"perplexity": 2.5}


def test_date_and_seconds(monkeypatch):
    before = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    run = records.Run()
    run._start -= 3
    found = run.record({}, {})["run"]
    assert 3 <= found["seconds"] < 60
    date = datetime.datetime.fromisoformat(found["date"])
    assert date.utcoffset() == datetime.timedelta(0)
    assert before <= date <= datetime.datetime.now(datetime.timezone.utc)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_figure_is_refused(tmp_path, value):
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises((ValueError, RSparseError)):
        records.write(path, {"metrics": {"perplexity": value}})
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        (["/usr/local/bin/rsparse", "eval", "/home/someone/models/tiny"], "rsparse eval tiny"),
        (["rsparse", "eval", "../models/tiny/", "--json", "~/out.json"], "rsparse eval tiny --json out.json"),
        (["rsparse", "generate", "owner/name", "--prompt", "a b"], "rsparse generate owner/name --prompt 'a b'"),
        (["rsparse", "eval", "x", "--json=/home/someone/out.json"], "rsparse eval x --json=out.json"),
        (["rsparse", "eval", "x", "--perplexity", "../../secret/text.txt"], "rsparse eval x --perplexity text.txt"),
        (["/usr/lib/python/rsparse/cli/__main__.py", "env"], "rsparse env"),
    ],
)
def test_the_command_tells_no_folders(monkeypatch, typed, written):
    monkeypatch.setattr(sys, "argv", typed)
    assert records.command_line() == written


def test_commit_is_a_hash_or_nothing():
    commit = records.commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{12}\+?", commit)


def test_commit_without_git(monkeypatch):
    def no_git(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr("subprocess.run", no_git)
    assert records.commit() is None


def test_the_environment_names_the_processor():
    found = records.environment()
    assert found["cpu"]
    assert found["threads"] >= 1
