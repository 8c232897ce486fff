"""What every cell of a folder has in common, kept there so that one table is one protocol."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rsparse.atomic import write_text
from rsparse.errors import RSparseError
from rsparse.evaluation.describe import short

SETTINGS_FILE = "settings.json"
Parts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """How cells are measured. `settle_tokens` None: all calibration tokens solve the thresholds; `tasks`: a stamp by name.

    Raises RSparseError for values out of range.
    """

    calibration_data: str
    calibration_tokens: int = 32768
    calibration_rows: int = 4096
    fit_tokens: int = 262_144
    seq_len: int = 512
    max_tokens: int | None = None
    settle_tokens: int | None = None
    sink_tokens: int = 1
    limit: int | None = None
    num_fewshot: int | None = None
    chat_template: bool = False
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    tasks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {
            "seq_len": 2,
            "calibration_tokens": self.seq_len,
            "fit_tokens": 2 * self.seq_len,
            "limit": 1,
            "num_fewshot": 0,
            "settle_tokens": 0,
        }
        for name, bound in {**least, "max_tokens": self.seq_len, "sink_tokens": 0}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise RSparseError(f"--{name.replace('_', '-')} must be {bound} or more, got {value}")


def parts_of(settings: Settings, models: Mapping[str, str], texts: Mapping[str, str]) -> Parts:
    """What a folder of such cells keeps. `models` and `texts` map labels to names; more of them may join it."""
    common = asdict(settings) | {"calibration_data": short(settings.calibration_data)}
    return {
        "settings": {name: value for name, value in common.items() if name != "tasks"},
        "tasks": dict(settings.tasks),
        "models": {label: model_stamp(name) for label, name in models.items()},
        "texts": {label: text_stamp(name) for label, name in texts.items()},
    }


@contextlib.contextmanager
def keeping(folder: Path, mine: Parts) -> Iterator[None]:
    """`keep_parts` for a block that measures. If the block leaves nothing beside a file that is new, the file is removed, and
    the folders made for it: without a record there is no protocol to hold others to."""
    file, new = folder / SETTINGS_FILE, [each for each in (folder, *folder.parents) if not each.exists()]
    fresh = not file.exists()
    keep_parts(folder, mine)
    written = _stamp(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # another process, which takes the folder or puts something there
            # Another stamp: a run that came later has written the file anew, and may be without a record as yet.
            if fresh and _stamp(file) == written and list(folder.iterdir()) == [file]:
                file.unlink()
                for each in new:
                    each.rmdir()


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns


def keep_parts(folder: Path, mine: Parts) -> None:
    """Write them to `folder`, beside what it keeps of other models and texts; raises what `check_parts` does."""
    write_text(folder / SETTINGS_FILE, json.dumps(check_parts(folder, mine), indent=1) + "\n")


def check_parts(folder: Path, mine: Parts) -> Parts:
    """What `folder` keeps with `mine` in it. Raises RSparseError where its `settings` are others, or one of the other parts has
    another model, text or task of the same name."""
    theirs = kept_parts(folder, mine)
    for part, values in theirs.items():
        strict = part == "settings" or (part == "tasks" and values and mine[part])
        for name in sorted({*values, *mine[part]} if strict else set(values) & set(mine[part])):
            there, here = values.get(name), mine[part].get(name)
            if there != here:
                what = name if part == "settings" else f"{part[:-1]} {name}"
                raise RSparseError(
                    f"{folder} holds cells of {what} = {there}, and this run has {here}; choose another folder, or the same"
                )
    return {part: {**theirs.get(part, {}), **values} for part, values in mine.items()}


def kept_parts(folder: Path, parts: Iterable[str]) -> Parts:
    """What `folder` keeps of `parts`, in the order in which it came; nothing where no bench has been. Raises RSparseError for
    another file of that name."""
    path = folder / SETTINGS_FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {part: dict(found[part]) for part in parts}
    except (ValueError, KeyError, TypeError) as error:
        raise RSparseError(f"{path} is not a bench's settings ({type(error).__name__}: {error}); move it away") from error


def text_stamp(name: str) -> str:
    """A file's content in twelve hex digits; other texts by their name."""
    path = Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else name


def model_stamp(name: str) -> str:
    """A local model by its configuration and its files' sizes, without reading the weights; others by their name."""
    path = Path(name)
    if path.is_file():
        return f"{path.stat().st_size} bytes"
    if not path.is_dir():
        return name
    parts = [f"{each.name} {each.stat().st_size}" for each in sorted(path.iterdir()) if each.suffix in (".safetensors", ".bin")]
    config = path / "config.json"
    parts.append(config.read_text(encoding="utf-8") if config.is_file() else "")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
