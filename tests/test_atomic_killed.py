"""What a killed run leaves goes with the next one that writes there; what a living one writes stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rsparse.atomic import new_folder, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


WRITER = """
import sys, time
from pathlib import Path
from rsparse import atomic
with getattr(atomic, sys.argv[1])(Path(sys.argv[2])) as aside:
    (aside / "half" if aside.is_dir() else aside).write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def writing(kind, path):
    """Another process in the middle of writing `path`."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, kind, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "writing\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def write_again(kind, path):
    if kind == "new_file":
        write_text(path, "new")
        return
    with new_folder(path) as staging:
        (staging / "x").write_text("new")


@pytest.mark.parametrize("kind", ["new_file", "new_folder"])
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path, kind):
    (tmp_path / ".out.partial-notes").write_text("somebody's")
    (tmp_path / ".other.partial-abcdefgh").mkdir()
    with writing(kind, tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = [".other.partial-abcdefgh", ".out.partial-notes"]
        assert len(names(tmp_path)) == 3
        write_again(kind, tmp_path / "out")
    assert names(tmp_path) == [*kept, "out"]


@pytest.mark.parametrize("kind", ["new_file", "new_folder"])
def test_what_a_living_process_writes_stays(tmp_path, kind):
    with writing(kind, tmp_path / "out"):
        (aside,) = tmp_path.iterdir()
        write_again(kind, tmp_path / "out")
        assert names(tmp_path) == [aside.name, "out"]
        assert (aside / "half" if aside.is_dir() else aside).read_text() == "half"


def test_an_old_folder_is_kept_until_the_new_one_is_whole(tmp_path):
    """A run killed between its two renames leaves the good copy under this name alone."""
    old = tmp_path / ".out.old-abcdefgh"
    old.mkdir()

    def fail():
        with new_folder(tmp_path / "out"):
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert names(tmp_path) == [old.name]
    write_again("new_folder", tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_an_aside_that_another_process_took_for_a_left_one_is_made_anew(tmp_path, monkeypatch):
    """Between its making and its lock."""
    real, made = os.open, []

    def take_the_first(path, *arguments):
        descriptor = real(path, *arguments)
        if ".partial-" in str(path):
            made.append(path)
            if len(made) == 1:
                Path(path).rmdir()
        return descriptor

    monkeypatch.setattr(os, "open", take_the_first)
    write_again("new_folder", tmp_path / "out")
    assert len(made) > 1
    assert names(tmp_path) == ["out"]
