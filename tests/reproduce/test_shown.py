"""What a folder says of itself to a table that is only shown."""

from __future__ import annotations

import json

import pytest

from rsparse.errors import RSparseError
from rsparse.reproduce.shown import check_holds, request_of, tasks_of, texts_of
from rsparse.reproduce.table import Row, Variant
from tests.reproduce.requests import ALL, CHOICE, table

MADE = table(Row("sparse_only", (0.4,), (Variant("generation", generates=True),)))
FEW = table(Row("sparse_only", (0.4,), (Variant("few", windows=3),)))


def folder_with(path, *, tasks=(), texts=()):
    path.mkdir(exist_ok=True)
    parts = {"settings": {}, "tasks": dict.fromkeys(tasks, "x"), "models": {"tiny": "y"}, "texts": dict.fromkeys(texts, "z")}
    (path / "settings.json").write_text(json.dumps(parts))
    return path


def test_tasks_are_those_of_the_folder_and_of_its_part_that_generates(tmp_path):
    folder_with(tmp_path, tasks=["piqa", "boolq"])
    folder_with(tmp_path / "generation", tasks=["summaries"])
    folder_with(tmp_path / "few", tasks=["none of those that generate"])
    assert tasks_of(tmp_path, [MADE, FEW], CHOICE) == ({"piqa": "x", "boolq": "x"}, {"summaries": "x"})
    assert tasks_of(tmp_path, [FEW], CHOICE)[1] == {}
    assert tasks_of(tmp_path / "nothing", [MADE], CHOICE) == ({}, {})


def test_texts_are_those_with_a_cell_of_the_model(tmp_path):
    folder_with(tmp_path, texts=["wiki.v2", "calibration", "of-another", "failed"])
    (tmp_path / "tiny").mkdir()
    for name in ("dense-all-wiki.v2.json", "dense-all-failed.failed"):
        (tmp_path / "tiny" / name).write_text("{}")
    assert texts_of(tmp_path, "tiny") == ["wiki.v2.txt", "failed.txt"]


def test_a_text_is_told_from_a_longer_one_that_ends_as_it_does(tmp_path):
    folder_with(tmp_path, texts=["wiki", "small-wiki"])
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "dense-all-small-wiki.json").write_text("{}")
    assert texts_of(tmp_path, "tiny") == ["small-wiki.txt"]
    (tmp_path / "tiny" / "dense-all-wiki.json").write_text("{}")
    assert texts_of(tmp_path, "tiny") == ["wiki.txt", "small-wiki.txt"]


def test_a_model_that_the_folder_does_not_have_is_told_from_those_that_it_has(tmp_path):
    with pytest.raises(RSparseError, match=r"x holds nothing of other; it has tiny$"):
        check_holds(folder_with(tmp_path / "x"), "other")
    (tmp_path / "x" / "tiny").mkdir()
    check_holds(tmp_path / "x", "tiny.gguf")


def test_a_request_of_several_folders_is_their_common_protocol(tmp_path):
    a, b = (folder_with(tmp_path / name, tasks=["piqa"]) for name in "ab")
    for folder, seed in ((a, 3), (b, 3)):
        _settings(folder, seed)
    folder_with(tmp_path / "b" / "generation", tasks=["summaries"])
    _settings(b / "generation", 3)
    asked = request_of((a, b), "tiny", (ALL,), ("one.txt",))
    assert (asked.settings.seed, asked.settings.tasks, asked.generated) == (3, {"piqa": "x"}, {"summaries": "x"})
    assert (asked.model, asked.policies, asked.texts, asked.choice.samples) == ("tiny", (ALL,), ("one.txt",), (1, 4, 16, 64))
    _settings(b, 4)
    with pytest.raises(RSparseError, match=r"b has another protocol than .*a: their settings.json differ"):
        request_of((a, b), "tiny", (ALL,), ())
    with pytest.raises(RSparseError, match=r"nothing has no settings.json"):
        request_of((a, tmp_path / "nothing"), "tiny", (ALL,), ())


def _settings(folder, seed):
    path = folder / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"calibration_data": "c.txt", "seed": seed}}))
