"""Files and folders that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
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
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        aside = Path(name)
        try:
            yield aside
            _finish(aside)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


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
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
        try:
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
            if old is not None and old.is_symlink():
                old.unlink()
            elif old is not None:
                shutil.rmtree(old)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


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
