"""Quality of (models × methods × levels) on texts and tasks: a record a cell, resumable, unattended."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsparse import records
from rsparse.benchmark.failures import clear, note, reason_of
from rsparse.benchmark.grid import DENSE, Cell, CellList, Grid, model_label, text_label
from rsparse.benchmark.settings import Settings, keeping, parts_of
from rsparse.benchmark.workbench import Prepared, Workbench
from rsparse.errors import RefusedError
from rsparse.evaluation.describe import short
from rsparse.methods import MethodSpec


class QualityBench:
    """Runs a grid into a folder. Cells that have their record are left alone; one that fails is named at the end, and in a note
    beside the records until a run has it.

    `refused`, where given, takes the cells that their method refuses, which then have not failed. `prepared` are recipes that
    are there already. `config` joins every record.
    """

    def __init__(
        self,
        grid: Grid | CellList,
        settings: Settings,
        folder: Path,
        load: Callable[[str], tuple[Any, Any]],
        tasks: Sequence[Any] = (),
        say: Callable[[str], None] = print,
        *,
        refused: Callable[[Cell, RefusedError], None] | None = None,
        prepared: Prepared | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.grid, self.settings, self.folder = grid, settings, folder
        self.load, self.tasks, self.say = load, tasks, say
        self.refused, self.prepared, self.config = refused, prepared or {}, dict(config or {})
        self.failed: list[str] = []

    def run(self) -> list[str]:
        """Run what is missing; returns a line for each cell that failed."""
        texts = {text_label(name): name for name in (*self.grid.texts, self.settings.calibration_data)}
        parts = parts_of(self.settings, {model_label(name): name for name in self.grid.models}, texts)
        missing = {model: [c for c in self.grid.cells(model) if not c.path(self.folder).exists()] for model in self.grid.models}
        self._total, self._done = sum(map(len, missing.values())), 0
        self._start = time.perf_counter()
        with keeping(self.folder, parts):
            if self._total:
                self.say(f"[0/{self._total}] cells to measure")
            for model, cells in missing.items():
                if cells:
                    self._run_model(model, cells)
        return self.failed

    def _run_model(self, name: str, cells: list[Cell]) -> None:
        try:
            bench = Workbench(name, *self.load(name), self.settings, self.tasks, self.prepared)
        except Exception as error:
            self._fail(cells, error)
            return
        for (method, sparsity), group in _grouped(cells).items():
            try:
                with bench.sparse(method, sparsity):
                    for cell in group:
                        try:
                            self._run_cell(bench, cell)
                        except Exception as error:
                            self._fail([cell], error)
            except Exception as error:  # the recipe cannot be made or settled: none of its cells has run
                self._fail(group, error)

    def _run_cell(self, bench: Workbench, cell: Cell) -> None:
        timer = records.Run()
        config, metrics = bench.measure(cell)
        record = timer.record(config | self.config, metrics, backend=bench.backend)
        records.write(cell.path(self.folder), record)
        clear(cell.path(self.folder))
        self._done += 1
        left = (time.perf_counter() - self._start) / self._done * (self._total - self._done)
        self.say(
            f"[{self._done}/{self._total}] {cell_name(cell)}: {_headline(metrics)}   "
            f"{record['run']['seconds']:.1f} s, about {_duration(left)} left"
        )

    def _fail(self, cells: list[Cell], error: Exception) -> None:
        """Whatever it is, out of memory too, the other cells go on: nobody watches."""
        reason = reason_of(error)
        for cell in cells:
            self._done += 1
            line = f"{cell_name(cell)}: {reason}"
            if self.refused is not None and isinstance(error, RefusedError):
                self.refused(cell, error)
                clear(cell.path(self.folder))
                self.say(f"[{self._done}/{self._total}] refused: {line}")
                continue
            note(cell.path(self.folder), cell_name(cell), reason)
            self.failed.append(line)
            self.say(f"[{self._done}/{self._total}] failed: {line}")


def _grouped(cells: list[Cell]) -> dict[tuple[MethodSpec, float], list[Cell]]:
    groups: dict[tuple[MethodSpec, float], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.method, cell.sparsity), []).append(cell)
    return groups


def cell_name(cell: Cell) -> str:
    """For people."""
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
