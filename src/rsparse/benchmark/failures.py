"""What a cell that failed leaves beside its record's place, until a run has the record."""

from __future__ import annotations

import contextlib
import datetime
import json
from pathlib import Path

from rsparse.atomic import write_text
from rsparse.errors import RSparseError


def failure_file(record: Path) -> Path:
    """The note of the cell whose record goes to `record`. No .json: a reader of records must not take it for one."""
    return record.with_suffix(".failed")


def reason_of(error: Exception) -> str:
    """An error in one line, without the name of a class that only says that it is ours."""
    text = str(error) if isinstance(error, RSparseError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:300]


def note(record: Path, cell: str, reason: str) -> None:
    """Say which cell failed, why and when, in place of what an earlier run said."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    content = {"cell": cell, "reason": reason, "date": date}
    with contextlib.suppress(RSparseError):  # a full disk may be the reason, and the other cells go on
        write_text(failure_file(record), json.dumps(content, indent=1) + "\n")


def clear(record: Path) -> None:
    """The cell has its record."""
    failure_file(record).unlink(missing_ok=True)


def failure(record: Path) -> str | None:
    """Why the last try of a cell failed; None where it has its record, or has not been tried. Raises RSparseError for a damaged
    note."""
    path = failure_file(record)
    if record.exists() or not path.exists():
        return None
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RSparseError(f"{path} is no note of a failure ({type(error).__name__}: {error}); delete it") from error
