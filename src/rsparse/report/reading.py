"""Result records in a folder, and the files that are none."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rsparse.benchmark.settings import SETTINGS_FILE
from rsparse.errors import RSparseError
from rsparse.methods import names
from rsparse.records import SCHEMA

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """A record (design.md §5). `path` is relative to the folder that was read, with slashes; `model` the name that it goes
    by in the report."""

    path: str
    file: Path
    run: Values
    env: Values
    config: Values
    metrics: Values
    model: str

    @property
    def folder(self) -> str:
        """A folder is one protocol, so that tables stay within one."""
        return str(PurePosixPath(self.path).parent)

    @property
    def place(self) -> str:
        """The folder in a sentence."""
        return "the folder itself" if self.folder == "." else f"`{self.folder}`"

    @property
    def machine(self) -> str:
        """Where it ran."""
        return text(self.env, "gpu") or text(self.env, "cpu") or "a machine that it does not name"


@dataclass(frozen=True)
class LeftOut:
    """A file that is no record, and why."""

    path: str
    why: str


def read(folder: Path) -> tuple[list[Record], list[LeftOut]]:
    """Everything that ends in .json below `folder`, in order of path. Raises RSparseError where there is no record at all."""
    if not folder.is_dir():
        raise RSparseError(f"{folder} is {'a file' if folder.exists() else 'not there'}; name a folder of result records")
    records: list[Record] = []
    left: list[LeftOut] = []
    for file in sorted(folder.rglob("*.json"), key=lambda each: each.relative_to(folder).as_posix()):
        path = file.relative_to(folder)
        if file.is_dir() or any(part.startswith(".") for part in path.parts):
            continue  # what a run writes aside before it takes its name
        found = _parse(file, path.as_posix())
        if isinstance(found, LeftOut):
            left.append(found)
        else:
            records += _forms(found)
    if not records:
        files = f"{len(left)} .json file{'s' * (len(left) != 1)}"
        seen = f"{files}, none of them a record (the first: {left[0].why})" if left else "no .json file"
        raise RSparseError(f"{folder} holds {seen}; name a folder of records, as `--json` and the benches write them")
    return _named(records), left


def number(values: Values, name: str) -> float | None:
    """A finite number, else None."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def text(values: Values, name: str) -> str:
    """A value as text: a list with commas; empty where there is none."""
    value = values.get(name)
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, list):
        return ", ".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def numbers(values: Values, name: str) -> list[float]:
    """A list of finite numbers; empty where it is none."""
    found = values.get(name)
    if not isinstance(found, list):
        return []
    parts = [number({"": each}, "") for each in found]
    return [] if None in parts else [each for each in parts if each is not None]


def _parse(file: Path, path: str) -> Record | LeftOut:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        return LeftOut(path, f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError):
        return LeftOut(path, "not valid JSON, so damaged or cut short")
    if not isinstance(data, dict) or not all(isinstance(data.get(part), dict) for part in ("config", "metrics")):
        return LeftOut(path, _what(file, data))
    if data.get("schema") != SCHEMA:
        return LeftOut(path, f"a record of schema {data.get('schema')!r}; this version reads {SCHEMA}")
    if not text(data["config"], "model"):
        return LeftOut(path, "a record whose config names no model")
    run, env = (data[part] if isinstance(data.get(part), dict) else {} for part in ("run", "env"))
    return Record(path, file, run, env, data["config"], data["metrics"], text(data["config"], "model"))


def _what(file: Path, data: Any) -> str:
    """What a .json that is no record most likely is."""
    if file.name == SETTINGS_FILE:
        return "the settings of a bench or study: its records have them"
    if isinstance(data, dict) and "units" in data:
        return "a recipe"
    if file.parent.with_suffix(".json").is_file():
        return "a point of an analysis: its record is beside the folder"
    return "no result record: it has no `config` and `metrics`"


def _forms(record: Record) -> list[Record]:
    """The record, or where one compares several forms of a model (`rsparse demo`), a record for each."""
    forms = record.metrics.get("rows")
    if not isinstance(forms, dict) or not all(isinstance(each, dict) for each in forms.values()):
        return [record]
    found = []
    for name, metrics in forms.items():
        method = name.lower().replace("-", "_")
        own = {"preset": name}
        if all(record.metrics.get(key) == value for key, value in metrics.items()):  # the form that the record itself is of
            metrics = {key: value for key, value in record.metrics.items() if key != "rows"}
            own = {"preset": text(record.config, "method") or name}
        if method in names():
            own = {"preset": method, "method": method} | ({"sparsity": 0.0} if method == "dense" else {})
        found.append(replace(record, config={**record.config, **own}, metrics=metrics))
    return found


def _named(records: Sequence[Record]) -> list[Record]:
    """One name for one model: a checkpoint's folder goes by what most records call the same weights."""
    called: dict[str, Counter[str]] = {}
    for record in records:
        if sha := text(record.config, "weights_sha"):
            called.setdefault(sha, Counter())[record.model.removesuffix(".gguf")] += 1
    best = {sha: min(count, key=lambda name: (-count[name], name)) for sha, count in called.items()}
    return [replace(r, model=best.get(text(r.config, "weights_sha"), r.model.removesuffix(".gguf"))) for r in records]
