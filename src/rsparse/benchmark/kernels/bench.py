"""Runs the cases of a plan, a record file a shape: resumable, unattended, within a time."""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rsparse import records
from rsparse.benchmark.decode.kernels import copy_bandwidth
from rsparse.benchmark.failures import reason_of
from rsparse.benchmark.kernels.cases import Case, Plan, block_of, ranks_at
from rsparse.benchmark.kernels.outcome import Outcome, caught
from rsparse.benchmark.kernels.record import Row, Rows, failed_row, headline, measured_row
from rsparse.errors import RSparseError

if TYPE_CHECKING:
    from rsparse.benchmark.kernels.tiles import Tuner

MASKS = (
    "random, of exactly the kept count in each input and others for each copy of the weights; an MLP's second one is drawn on "
    "what its first linears give, as near to the count as ties let it"
)


@dataclass(frozen=True)
class Machine:
    """Where and how cases run. `seconds`: no case begins later, None for any time; `tune_seconds`: for tile settings."""

    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    repeats: int = 7
    seconds: float | None = None
    tune_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("seconds", 0), ("tune_seconds", 0)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise RSparseError(f"--{name.replace('_', '-')} must be {least} or more, got {value:g}")

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def settings(self) -> dict[str, Any]:
        """What all records of a folder share; other shapes, levels, batches and dtypes may join."""
        gpu = self.device.type == "cuda"
        return {
            "suite": "kernels",
            "machine": torch.cuda.get_device_name(self.device) if gpu else records.cpu_name(),
            "torch": torch.__version__,
            "triton": importlib.metadata.version("triton"),
            "repeats": self.repeats,
            "seed": self.seed,
        }


class KernelBench:
    """Runs `plan` into `folder`. Rows that are there are left alone, unless `overwrite`; a path that fails is named.

    It needs Triton, from `run` on.
    """

    def __init__(
        self, plan: Plan, machine: Machine, folder: Path, say: Callable[[str], None] = print, *, overwrite: bool = False
    ) -> None:
        self.plan, self.machine, self.folder, self.say, self.overwrite = plan, machine, folder, say, overwrite
        self.failed: list[str] = []

    def path(self, model: str) -> Path:
        """Where a shape's record goes."""
        return self.folder / f"{model}-{self.machine.dtype_name}.json"

    def run(self) -> list[str]:
        """Run what is missing; returns a line for each path that failed."""
        from rsparse.benchmark.kernels.tiles import Tuner

        self._start, device = time.perf_counter(), self.machine.device
        found = {model: Rows(self.path(model), self._config(model)) for model in self.plan.models}
        todo = {model: self._missing(model, rows) for model, rows in found.items()}
        self._total, self._done = sum(map(len, todo.values())), 0
        tuner = Tuner(device, self.machine.dtype, self.machine.tune_seconds, self.say)
        with torch.cuda.device(device if device.type == "cuda" else -1):
            self._bandwidth = copy_bandwidth(device) if self._total else None
            _free()
            for model, cases in todo.items():
                if cases and not self._run_model(found[model], cases, tuner):
                    break
        return self.failed

    def _missing(self, model: str, rows: Rows) -> list[tuple[Case, list[str]]]:
        found = []
        for case in self.plan.cases(model):
            ranks = ranks_at(case.sparsity, self.plan.ranks) if self.overwrite else rows.missing(case, self.plan.ranks)
            if ranks:
                found.append((case, ranks))
        return found

    def _run_model(self, rows: Rows, cases: list[tuple[Case, list[str]]], tuner: Tuner) -> bool:
        """Whether there was time for all of them."""
        linears = block_of(cases[0][0].model).linears
        tuner.use(rows.tiles)
        tuner.run(dict.fromkeys(case.unit for case, _ in cases), linears, self.plan.batch)
        rows.tiles |= tuner.of(linears)
        for case, ranks in cases:
            spent = time.perf_counter() - self._start
            if self.machine.seconds is not None and spent > self.machine.seconds:
                self.say(f"{spent:.0f} s are over: {self._total - self._done} cases are left, run again to go on")
                return False
            made = self._case(case, ranks)
            rows.put(made)
            _free()
            self._done += 1
            self.say(f"[{self._done}/{self._total}] {case.label}: {headline(made)}")
        return True

    def _case(self, case: Case, ranks: list[str]) -> list[Row]:
        """A row for each of `ranks`, of one run with all dense paths."""
        from rsparse.benchmark.kernels.execute import run_case

        machine, rows = self.machine, []
        try:
            outcome = run_case(case, ranks, machine.device, machine.dtype, machine.seed, machine.repeats)
        except Exception as error:  # the weights do not fit, or the device is lost
            outcome = Outcome(failed=dict.fromkeys(ranks, reason_of(error)))
        failed = outcome.failed
        for name in ranks:
            if name not in failed:
                with caught(failed, name):
                    path, size = outcome.paths[name], machine.dtype.itemsize
                    rows.append(measured_row(case, name, path, outcome.timings, size, self._bandwidth))
            if name in failed:
                rows.append(failed_row(case, name, failed[name]))
        for name, why in failed.items():
            self.failed.append(f"{case.label}, {name}: {why}")
            self.say(f"failed: {self.failed[-1]}")
        return rows

    def _config(self, model: str) -> dict[str, Any]:
        config = {"suite": "kernels", "model": model, "weights": "random", "dtype": self.machine.dtype_name, "masks": MASKS}
        return config | {name: self.machine.settings[name] for name in ("triton", "repeats", "seed")}


def _free() -> None:
    """What a case held is gone with its names: nothing of it is in a cycle, and a collection takes as long as a case."""
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # a lost device, which the rows of the cases tell
            torch.cuda.empty_cache()
