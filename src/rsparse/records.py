"""Result records: what ran, where, on what, and what came out; written by the program or not at all."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rsparse import __version__
from rsparse.atomic import write_text

SCHEMA = 1


class Run:
    """Times one command and writes its record."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")

    def record(self, config: dict[str, Any], metrics: dict[str, Any], *, backend: str = "reference") -> dict[str, Any]:
        """`{"schema", "run", "env", "config", "metrics"}` (design.md §5)."""
        return {
            "schema": SCHEMA,
            "run": {
                "command": command_line(),
                "commit": commit(),
                "date": self._date,
                "seconds": round(time.perf_counter() - self._start, 2),
            },
            "env": environment() | {"backend": backend},
            "config": config,
            "metrics": metrics,
        }


def write(path: str | Path, record: dict[str, Any]) -> None:
    """One record, as readable JSON, atomically. NaN is refused: it is not JSON and no figure."""
    write_text(Path(path), json.dumps(record, indent=1, allow_nan=False) + "\n")


def command_line() -> str:
    """The command as typed, without the folders of the machine it ran on."""
    program = Path(sys.argv[0]).name
    return shlex.join(["rsparse" if program == "__main__.py" else program, *map(_without_folders, sys.argv[1:])])


def _without_folders(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (Path(value).name if value.startswith(("/", "../", "~")) else value)


def commit() -> str | None:
    """The checkout's commit where rsparse runs from one, with `+` for changes that are not committed; else RSPARSE_COMMIT."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) / "src" / "rsparse" == here:
            return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    return os.environ.get("RSPARSE_COMMIT")


def environment() -> dict[str, Any]:
    """Processor, GPU and versions."""
    import torch
    import transformers

    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rsparse": __version__,
    }


def cpu_name() -> str:
    """The processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
