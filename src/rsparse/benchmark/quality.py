"""Quality of (models × methods × levels) on texts and tasks: a record a cell, resumable, unattended."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rsparse import records
from rsparse.atomic import write_text
from rsparse.benchmark.workbench import Workbench
from rsparse.errors import RSparseError
from rsparse.evaluation.describe import short
from rsparse.methods import MethodSpec
from rsparse.token_policy import TokenPolicy

SETTINGS_FILE = "settings.json"
DENSE = MethodSpec("dense")


@dataclass(frozen=True)
class Settings:
    """What every cell of a folder has in common; a folder is not gone on with under others.

    `settle_tokens` None: all calibration tokens solve the thresholds.
    """

    calibration_data: str
    calibration_tokens: int = 32768
    calibration_rows: int = 4096
    seq_len: int = 512
    max_tokens: int | None = None
    settle_tokens: int | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    seed: int = 0
    dtype: str = "auto"

    def check(self, folder: Path) -> None:
        """Write them to `folder`, or raise RSparseError where it holds cells of other settings."""
        path = folder / SETTINGS_FILE
        mine = asdict(self) | {"calibration_data": short(self.calibration_data)}
        if path.exists():
            try:
                theirs = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise RSparseError(f"{path} is not valid JSON: {error}") from error
            for name in sorted({*mine, *theirs}):
                if mine.get(name) != theirs.get(name):
                    raise RSparseError(
                        f"{folder} holds cells of {name} {theirs.get(name)}, and this run has {mine.get(name)}; "
                        "choose another folder, or the same settings"
                    )
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(mine, indent=1) + "\n")


@dataclass(frozen=True)
class Cell:
    """One record: a method at a level under a token policy, on one text or on the tasks (`text` None)."""

    model: str
    method: MethodSpec
    sparsity: float
    token_policy: TokenPolicy
    text: str | None

    def path(self, folder: Path) -> Path:
        """Where its record goes."""
        what = "tasks" if self.text is None else text_label(self.text)
        level = "" if self.method == DENSE else f"-s{self.sparsity:g}"
        policy = str(self.token_policy).replace(":", "")
        return folder / model_label(self.model) / f"{self.method.label}{level}-{policy}-{what}.json"


def model_label(name: str) -> str:
    """A model in a folder's name."""
    return short(name).removesuffix(".gguf").replace("/", "--")


def text_label(name: str) -> str:
    """A text in a file's name."""
    return Path(short(name)).stem.replace(":", "-").replace("/", "--")


@dataclass(frozen=True)
class Grid:
    """What to run. Tasks are run at `task_levels`, every level where that is None."""

    models: Sequence[str]
    methods: Sequence[MethodSpec]
    levels: Sequence[float]
    policies: Sequence[TokenPolicy]
    texts: Sequence[str]
    text_policies: Sequence[TokenPolicy] | None = None
    tasks: bool = False
    task_levels: Sequence[float] | None = None

    def __post_init__(self) -> None:
        labels = {
            "model": list(map(model_label, self.models)),
            "text": list(map(text_label, self.texts)),
            "method": [method.label for method in self.methods],
        }
        for what, names in labels.items():
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise RSparseError(f"two {what}s are called {twice}, and their records would have one name; rename one")

    def cells(self, model: str) -> Iterator[Cell]:
        """A model's cells, dense first, and those of one sparse model together."""
        text_policies = self.policies if self.text_policies is None else self.text_policies
        for text in self.texts:
            for policy in text_policies:
                yield Cell(model, DENSE, 0.0, policy, text)
        if self.tasks:  # a dense model's scores are the same under every policy
            yield Cell(model, DENSE, 0.0, TokenPolicy("dense"), None)
        for level in self.levels:
            for method in self.methods:
                if method.name == "dense":
                    continue
                for text in self.texts:
                    for policy in text_policies:
                        yield Cell(model, method, level, policy, text)
                if self.tasks and (self.task_levels is None or level in self.task_levels):
                    for policy in self.policies:
                        yield Cell(model, method, level, policy, None)


class QualityBench:
    """Runs a grid into a folder. Cells that have their record are left alone; one that fails is named at the end."""

    def __init__(
        self,
        grid: Grid,
        settings: Settings,
        folder: Path,
        load: Callable[[str], tuple[Any, Any]],
        tasks: Sequence[Any] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self.grid, self.settings, self.folder = grid, settings, folder
        self.load, self.tasks, self.say = load, tasks, say
        self.failed: list[str] = []

    def run(self) -> list[str]:
        """Run what is missing; returns a line for each cell that failed."""
        self.settings.check(self.folder)
        missing = {model: [c for c in self.grid.cells(model) if not c.path(self.folder).exists()] for model in self.grid.models}
        self._total, self._done = sum(map(len, missing.values())), 0
        self._start = time.perf_counter()
        for model, cells in missing.items():
            if cells:
                self._run_model(model, cells)
        return self.failed

    def _run_model(self, name: str, cells: list[Cell]) -> None:
        try:
            bench = Workbench(name, *self.load(name), self.settings, self.tasks)
        except RSparseError as error:
            self._fail(cells, error)
            return
        for (method, sparsity), group in _grouped(cells).items():
            try:
                with bench.sparse(method, sparsity):
                    for cell in group:
                        self._run_cell(bench, cell)
            except RSparseError as error:
                self._fail([cell for cell in group if not cell.path(self.folder).exists()], error)

    def _run_cell(self, bench: Workbench, cell: Cell) -> None:
        timer = records.Run()
        config, metrics = bench.measure(cell)
        record = timer.record(config, metrics, backend=bench.backend)
        records.write(cell.path(self.folder), record)
        self._done += 1
        left = (time.perf_counter() - self._start) / self._done * (self._total - self._done)
        self.say(
            f"[{self._done}/{self._total}] {_name(cell)}: {_headline(metrics)}   "
            f"{record['run']['seconds']:.1f} s, about {_duration(left)} left"
        )

    def _fail(self, cells: list[Cell], error: RSparseError) -> None:
        self._done += len(cells)
        for cell in cells:
            line = f"{_name(cell)}: {error}"
            if line not in self.failed:
                self.failed.append(line)
                self.say(f"[{self._done}/{self._total}] failed: {line}")


def _grouped(cells: list[Cell]) -> dict[tuple[MethodSpec, float], list[Cell]]:
    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.method.label, cell.sparsity), []).append(cell)
    return {(group[0].method, level): group for (_, level), group in groups.items()}


def _name(cell: Cell) -> str:
    what = "tasks" if cell.text is None else short(cell.text)
    level = "" if cell.method == DENSE else f" {cell.sparsity:.0%}"
    return f"{short(cell.model)} {cell.method.label}{level} {cell.token_policy} {what}"


def _headline(metrics: dict[str, Any]) -> str:
    if "perplexity" in metrics:
        return f"perplexity {metrics['perplexity']:.2f}"
    scores = [entry["acc"] for entry in metrics["tasks"].values() if "acc" in entry]
    return f"mean acc {sum(scores) / len(scores):.4f}" if scores else f"{len(metrics['tasks'])} tasks"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
