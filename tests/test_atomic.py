from __future__ import annotations

import errno
import os
import stat

import pytest

from rsparse.atomic import check_target, disk_errors, new_file, new_folder, write_text
from rsparse.errors import RSparseError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_with(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def half_written(folder, error):
    (folder / "new").write_text("2")
    raise error


def test_write_text_makes_parents_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_text(path, "one")
    write_text(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert names(path.parent) == ["b.json"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "r.json"
    write_text(path, "old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, broken, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["r.json"]


def test_nothing_of_a_write_is_visible_before_it_is_on_disk(tmp_path, monkeypatch):
    path, seen = tmp_path / "r.json", []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(path.exists()), real(descriptor))[1])
    write_text(path, "new")
    assert seen
    assert not any(seen)


def test_write_text_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "r.json", "x")
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "full"), (errno.EIO, "cannot write")]
)
def test_a_failing_disk_is_one_line(tmp_path, monkeypatch, number, says):
    path = tmp_path / "r.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", fail_with(number))
    with pytest.raises(RSparseError, match=says) as caught:
        write_text(path, "new")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["r.json"]


def test_disk_errors_knows_the_full_disk_of_other_libraries(tmp_path):
    with pytest.raises(RSparseError, match="full"), disk_errors(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="other"), disk_errors(tmp_path):
        raise RuntimeError("other")


def test_a_new_folder_appears_at_the_end(tmp_path):
    target = tmp_path / "deep" / "out"
    with new_folder(target) as staging:
        assert not target.exists()
        assert staging.parent == target.parent  # else the rename could cross file systems
        (staging / "x").write_text("1")
    assert names(target) == ["x"]
    assert names(target.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "out") as staging:
        half_written(staging, error)
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_before_work(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("old")
    ran = []
    with pytest.raises(RSparseError, match=r"exists.*--overwrite"), new_folder(tmp_path / "out"):
        ran.append(1)
    assert not ran
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "x").read_text() == "old"


def test_a_file_is_never_overwritten_by_a_folder(tmp_path):
    (tmp_path / "out").write_text("old")
    for overwrite in (False, True):
        with pytest.raises(RSparseError, match="is a file"), new_folder(tmp_path / "out", overwrite=overwrite):
            pass
    assert (tmp_path / "out").read_text() == "old"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    check_target(tmp_path / "out")
    with new_folder(tmp_path / "out") as staging:
        (staging / "x").write_text("1")
    assert names(tmp_path / "out") == ["x"]
    assert names(tmp_path) == ["out"]


def test_overwrite_replaces_only_on_success(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(ValueError, match="stop"), new_folder(out, overwrite=True) as staging:
        half_written(staging, ValueError("stop"))
    assert names(out) == ["old"]
    with new_folder(out, overwrite=True) as staging:
        (staging / "new").write_text("2")
        assert names(out) == ["old"]
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("1")
    real = os.rename

    def rename(source, target):
        if ".partial-" in str(source):
            raise OSError(errno.EIO, "broken")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(RSparseError, match="cannot write"), new_folder(out, overwrite=True) as staging:
        (staging / "new").write_text("2")
    assert names(out) == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_full_disk_inside_a_folder_is_one_line(tmp_path):
    with pytest.raises(RSparseError, match="the disk is full") as caught, new_folder(tmp_path / "out"):
        fail_with(errno.ENOSPC)()
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_overwrite_of_a_link_to_a_folder_leaves_no_trace(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_text("1")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "out", overwrite=True) as staging:
        (staging / "new").write_text("2")
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out", "real"]


def test_a_failed_new_file_leaves_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")

    def cut_short():
        with new_file(tmp_path / "a.png") as aside:
            aside.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_short()
    assert names(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o022)
    try:
        with new_folder(tmp_path / "out") as staging:
            (staging / "weights").write_bytes(b"1")
            (staging / "weights").chmod(0o600)  # as safetensors leaves it
        write_text(tmp_path / "a.json", "{}")
    finally:
        os.umask(old)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out/weights", "a.json")] == [0o644, 0o644]


def test_a_failed_write_leaves_no_new_folders(tmp_path):
    (tmp_path / "there").mkdir()

    def fail(make):
        with make(tmp_path / "there" / "a" / "b" / "out") as aside:
            assert aside.parent.is_dir()
            raise ValueError("stop")

    for make in (new_file, new_folder):
        with pytest.raises(ValueError, match="stop"):
            fail(make)
        assert names(tmp_path) == ["there"]
        assert names(tmp_path / "there") == []


def test_a_folder_that_others_use_by_now_stays(tmp_path):
    def fail():
        with new_file(tmp_path / "a" / "b" / "out"):
            (tmp_path / "a" / "theirs").write_text("1")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert names(tmp_path / "a") == ["theirs"]
