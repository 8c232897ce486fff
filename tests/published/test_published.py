"""The published figures that ship: what they say, and that nothing of them is ours."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from rsparse import published
from rsparse.errors import RSparseError

EIGHT = {"winogrande", "piqa", "sciq", "openbookqa", "hellaswag", "boolq", "arc_easy", "arc_challenge"}


def figure(name, **wanted):
    found = [row for row in published.load(name).rows if all(getattr(row, key) == value for key, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_sets_and_their_policies():
    assert {name: published.load(name).token_policy for name in published.names()} == {
        "parts": "last_fraction:0.1",
        "search_size": "last_fraction:0.1",
        "tasks": "last_fraction:0.1",
        "wina": "last_fraction:0.99",
    }
    assert [name for name in published.names() if published.load(name).lower_is_better] == ["search_size"]


@pytest.mark.parametrize("name", published.names())
def test_every_figure_has_its_source(name):
    figures = published.load(name)
    assert figures.arxiv in ("2504.19449", "2505.19427")
    assert all(row.origin for row in figures.rows)
    assert figures.token_policy in figures.provenance()
    assert figures.arxiv in figures.provenance()
    assert all(row.origin in figures.provenance() for row in figures.rows)
    keys = [(row.model, row.method, row.sparsity, tuple(row.options.items())) for row in figures.rows]
    assert len(set(keys)) == len(keys)


def test_means_are_those_of_the_tasks():
    rows = [row for row in published.load("tasks").rows if row.tasks]
    assert len(rows) == 7
    for row in rows:
        assert set(row.tasks) == EIGHT
        assert statistics.fmean(row.tasks.values()) == pytest.approx(row.mean, abs=0.006)


def test_some_of_them():
    assert figure("tasks", model="Llama-2-7B", method="dejavu").mean == 63.55
    assert figure("tasks", model="Gemma-7B", method="griffin").tasks["sciq"] == 77.1
    assert figure("tasks", model="Llama-2-7B", sparsity=0.4).mean == 65.00
    assert figure("tasks", model="Mistral-7B", method="rsparse").mean == 68.39
    assert figure("parts", method="low_rank_only") == published.Figure(
        "Llama-3-8B class", "low_rank_only", None, 33.05, "reported elsewhere, second-hand"
    )
    assert figure("search_size", options={"population": 32}).mean == 6.32
    assert [row.mean for row in published.load("search_size").rows if "generations" in row.options] == [
        13.58, 12.42, 11.44, 7.85, 6.32, 6.32, 6.32, 6.20, 6.20, 6.19,
    ]  # fmt: skip
    assert figure("wina", model="Llama-3-8B", method="teal").mean == 70.03


def test_unknown_and_damaged_sets(tmp_path, monkeypatch):
    with pytest.raises(RSparseError, match="no set 'magic' of published figures; there are parts, "):
        published.load("magic")
    (tmp_path / "mine.json").write_text(json.dumps({"source": "a", "rows": [{"modell": "b"}]}))
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    with pytest.raises(RSparseError, match="'mine' are damaged"):
        published.load("mine")


def test_to_dict_leaves_out_what_is_not_known():
    assert published.to_dict(published.Figure(None, "teal", None, 1.5, "here", options={"population": 8})) == {
        "method": "teal", "mean": 1.5, "origin": "here", "options": {"population": 8},
    }  # fmt: skip


def test_they_ship():
    project = Path(published.__file__).parents[3] / "pyproject.toml"
    assert '"rsparse.published" = ["*.json"]' in project.read_text()
