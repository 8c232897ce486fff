"""What a folder keeps of its protocol, and for how long."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from rsparse.benchmark.settings import SETTINGS_FILE, check_parts, keep_parts, keeping
from rsparse.errors import RSparseError

MINE = {"settings": {"seed": 0}, "models": {"one": "a"}}
OTHER = MINE | {"settings": {"seed": 1}}


def kept(folder):
    return json.loads((folder / SETTINGS_FILE).read_text())


def interrupted(folder, after=lambda: None):
    """A run that is stopped `after` what it did."""

    def stop():
        assert kept(folder) == MINE  # a killed run's records have it
        after()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), keeping(folder, MINE):
        stop()


def test_what_recorded_nothing_leaves_nothing(tmp_path):
    interrupted(tmp_path / "deep" / "out")
    assert os.listdir(tmp_path) == []
    with keeping(tmp_path / "out", MINE):
        pass
    assert os.listdir(tmp_path) == []
    with keeping(tmp_path / "out", OTHER):
        (tmp_path / "out" / "record.json").write_text("{}")


def test_folders_of_somebody_else_stay(tmp_path):
    (tmp_path / "out").mkdir()
    interrupted(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
    with keeping(tmp_path / "new" / "out", MINE):
        (tmp_path / "new" / "notes.txt").touch()
    assert os.listdir(tmp_path / "new") == ["notes.txt"]


@pytest.mark.parametrize("name", ["record.json", "one.failed", "study.db"])
def test_beside_anything_else_it_stays(tmp_path, name):
    interrupted(tmp_path / "out", (tmp_path / "out" / name).touch)
    assert kept(tmp_path / "out") == MINE
    with pytest.raises(RSparseError, match="out holds cells of seed = 0, and this run has 1"):
        keep_parts(tmp_path / "out", OTHER)


def test_another_runs_file_stays(tmp_path):
    keep_parts(tmp_path, MINE)
    interrupted(tmp_path)
    assert kept(tmp_path) == MINE


@pytest.mark.parametrize("record", [True, False])
def test_a_run_that_came_later_keeps_its_file(tmp_path, record):
    """It writes the same in place of the file that was new to the first one, and may have no record as yet."""
    first, second = (keeping(tmp_path / "out", MINE) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert kept(tmp_path / "out") == MINE
    if record:
        (tmp_path / "out" / "record.json").write_text("{}")
    second.__exit__(None, None, None)
    assert kept(tmp_path / "out") == MINE


def test_a_folder_that_is_gone_hides_no_error(tmp_path):
    interrupted(tmp_path / "out", lambda: shutil.rmtree(tmp_path / "out"))


def test_to_check_writes_nothing_and_more_may_join(tmp_path):
    assert check_parts(tmp_path, MINE) == MINE
    assert os.listdir(tmp_path) == []
    keep_parts(tmp_path, MINE)
    more = MINE | {"models": {"two": "b"}}
    both = MINE | {"models": {"one": "a", "two": "b"}}
    assert check_parts(tmp_path, more) == both
    assert kept(tmp_path) == MINE
    keep_parts(tmp_path, more)
    assert kept(tmp_path) == both
    with pytest.raises(RSparseError, match="holds cells of model one = a, and this run has b"):
        check_parts(tmp_path, MINE | {"models": {"one": "b"}})
