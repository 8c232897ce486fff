"""Files and folders that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rsparse.errors import RSparseError


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file aside that takes `path`'s name when the block ends well, and vanishes when it does not.

    A reader sees the old file or the whole new one.
    """
    with disk_errors(path), _parents(path), _aside(path, folder=False) as aside:
        yield aside
        _finish(aside)
        os.replace(aside, path)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    with new_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A staging folder beside `path` that takes its name when the block ends well, and vanishes when it does not.

    Raises RSparseError at once where `path` exists and `overwrite` is False. An old folder is replaced only
    after the new one is whole.
    """
    check_target(path, overwrite=overwrite)
    with disk_errors(path), _parents(path), _aside(path, folder=True) as staging:
        os.chmod(staging, 0o777 & ~_umask())
        yield staging
        for file in filter(Path.is_file, staging.rglob("*")):
            _finish(file)
        old = None
        if path.exists():
            old = staging.with_name(staging.name.replace(".partial-", ".old-"))
            os.rename(path, old)
        try:
            os.rename(staging, path)
        except BaseException:
            if old is not None:
                os.rename(old, path)
            raise
        if old is not None:
            _remove(old)
        _remove_stale(path, "old")  # not before: a run killed between the two renames left the only copy there


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the folders above `path`; those that were not there before go again when the block fails."""
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else's files are in it by now
                folder.rmdir()
        raise


@contextlib.contextmanager
def _aside(path: Path, *, folder: bool) -> Iterator[Path]:
    """A new file or folder beside `path`, locked while the block runs and gone after it, wherever it failed.

    A killed process leaves its own behind, without the lock; that goes here.
    """
    _remove_stale(path, "partial")
    aside, descriptor = _locked_aside(path, folder)
    try:
        yield aside
    finally:
        os.close(descriptor)
        _remove(aside)


def _locked_aside(path: Path, folder: bool) -> tuple[Path, int]:
    prefix = f".{path.name}.partial-"
    while True:
        if folder:
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=prefix))
        else:
            made, name = tempfile.mkstemp(dir=path.parent, prefix=prefix)
            os.close(made)
            aside = Path(name)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(aside, os.O_RDONLY)
            with contextlib.suppress(OSError):  # no locks on this file system: then `_remove_stale` gets none either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if aside.exists():
                return aside, descriptor
            os.close(descriptor)  # another process took it for a left one before the lock was on


def _remove_stale(path: Path, kind: str) -> None:
    """Remove what killed processes left beside `path`. A lock tells the living: a pid may be another machine's."""
    name = re.compile(re.escape(f".{path.name}.{kind}-") + "[a-z0-9_]{8}")
    with contextlib.suppress(OSError):
        for left in path.parent.iterdir():
            if name.fullmatch(left.name):
                _remove_unlocked(left)


def _remove_unlocked(left: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(left, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(left)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_target(path: Path, *, overwrite: bool = False) -> None:
    """Refuse early to write over what is already there. Raises RSparseError."""
    if path.exists() and not path.is_dir():
        raise RSparseError(f"{path} is a file; name a folder to write to")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise RSparseError(f"{path} already exists; name another folder or pass --overwrite")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse early what cannot be made: the nearest folder that exists above `path` must take files."""
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir():
        raise RSparseError(f"cannot write {path}: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise RSparseError(f"cannot write {path}: no permission in {parent}")


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into one line."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error
    except Exception as error:  # safetensors reports a full disk as an exception of its own
        if "No space left" in str(error) or "File too large" in str(error):
            raise RSparseError(f"no room to write {path}: the disk is full") from error
        raise


def disk_error(path: Path, error: OSError) -> RSparseError:
    """The line for one failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RSparseError(f"no room to write {path}: the disk is full")
    return RSparseError(f"cannot write {path}: {error.strerror or error}")


def _finish(file: Path) -> None:
    """To the disk, and readable by whom the umask says: mkstemp and safetensors let nobody else read."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.chmod(file, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
