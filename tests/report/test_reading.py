"""What is a record, what is not and why, and what a model is called."""

from __future__ import annotations

import pytest

from rsparse.errors import RSparseError
from rsparse.report.reading import number, numbers, read, text
from tests.report.records import quality, record, write

GOOD = record({"method": "dense"}, {"perplexity": 10.0})


def test_files_that_are_no_records_are_told_why(tmp_path):
    write(tmp_path, good=GOOD, old=GOOD | {"schema": 0}, nameless={**GOOD, "config": {}}, settings={}, recipe={"units": {}})
    write(tmp_path, rho=GOOD, rho__p=[1], other=[1])
    (tmp_path / "cut.json").write_text('{"schema": 1, "con')
    (tmp_path / ".good.json.partial-x.json").write_text("{")
    records, left = read(tmp_path)
    assert [each.path for each in records] == ["good.json", "rho.json"]
    assert {each.path: each.why.partition(",")[0].partition(":")[0] for each in left} == {
        "cut.json": "not valid JSON",
        "nameless.json": "a record whose config names no model",
        "old.json": "a record of schema 0; this version reads 1",
        "other.json": "no result record",
        "recipe.json": "a recipe",
        "rho/p.json": "a point of an analysis",
        "settings.json": "the settings of a bench or study",
    }


@pytest.mark.parametrize("what", ["nothing", "file", "empty", "none"])
def test_a_folder_without_records_is_refused(tmp_path, what):
    folder = tmp_path / "results"
    if what == "file":
        folder.write_text("")
    elif what != "nothing":
        folder.mkdir()
    if what == "none":
        write(folder, other=[1])
    says = {
        "nothing": "not there",
        "file": "a file",
        "empty": "holds no .json file",
        "none": "1 .json file, none of them a record",
    }
    with pytest.raises(RSparseError, match=says[what]):
        read(folder)


def test_a_checkpoint_goes_by_what_most_records_call_its_weights(tmp_path):
    checkpoint = record({"model": "ck-teal"}, {})
    write(tmp_path, a=GOOD, b=GOOD, c=checkpoint, d=record({"model": "other", "weights_sha": "w2"}, {}))
    assert [each.model for each in read(tmp_path)[0]] == ["tiny", "tiny", "tiny", "other"]


def test_a_comparison_of_forms_is_a_record_each(tmp_path):
    forms = {"dense": {"perplexity": 10.0}, "sparse-only": {"perplexity": 12.0}, "R-Sparse": {"perplexity": 13.0}}
    own = {"method": "rsparse", "sparsity": 0.4}
    write(tmp_path, demo=record(own, {"perplexity": 13.0, "speedup": 0.9, "rows": forms}))
    found = read(tmp_path)[0]
    assert [(r.config["preset"], r.config["method"], r.config["sparsity"]) for r in found] == [
        ("dense", "dense", 0.0),
        ("sparse_only", "sparse_only", 0.4),
        ("rsparse", "rsparse", 0.4),
    ]
    assert [r.metrics.get("speedup") for r in found] == [None, None, 0.9]  # it is of the form that the record is of


def test_numbers_are_finite_and_no_truth_values():
    values = {"a": 1, "b": True, "c": float("nan"), "d": "1", "e": 10**400, "f": [1, 2.5], "g": [1, None], "h": 0.25}
    assert [number(values, name) for name in "abcdez"] == [1.0, None, None, None, None, None]
    assert [numbers(values, name) for name in "fga"] == [[1.0, 2.5], [], []]
    assert [text(values, name) for name in "afhz"] == ["1", "1, 2.5", "0.25", ""]


def test_the_folder_is_the_study(tmp_path):
    write(tmp_path, a__b__c=quality("teal", 0.5, text="x.txt", nll=[1.0, 2.0]), d=GOOD)
    assert [(r.folder, r.place) for r in read(tmp_path)[0]] == [("a/b", "`a/b`"), (".", "the folder itself")]
