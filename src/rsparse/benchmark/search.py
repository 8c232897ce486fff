"""Searches of several populations on one model: a record each, resumable, unattended."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsparse import records
from rsparse.calibration import Calibration
from rsparse.errors import RSparseError
from rsparse.evaluation.describe import model_config
from rsparse.memory import peak_bytes, reset_peak
from rsparse.ops.dispatch import resolve
from rsparse.search import SearchSettings, search
from rsparse.search.run import Progress, SearchResult

Loaded = tuple[Any, Calibration]


class SearchBench:
    """Runs a search for each of `populations`, else of the same `settings`, into `folder`; what has its record is left alone.

    `load` gives model and calibration, and is called where there is something to run. `config`, which names the `model`, joins
    every record.
    """

    def __init__(
        self,
        populations: Sequence[int],
        settings: SearchSettings,
        folder: Path,
        load: Callable[[], Loaded],
        config: dict[str, Any],
        say: Callable[[str], None] = print,
        report: Callable[[int, Progress], None] = lambda population, progress: None,
    ) -> None:
        self.searches = [replace(settings, population=population) for population in populations]
        if twice := next((each for each in populations if list(populations).count(each) > 1), None):
            raise RSparseError(f"population {twice} is named twice")
        self.folder, self.load, self.config, self.say, self.report = folder, load, config, say, report

    def missing(self) -> list[SearchSettings]:
        """Searches without a record, in the order in which they were named."""
        return [each for each in self.searches if not record_file(self.folder, each.population).exists()]

    def run(self) -> None:
        """Run what is missing."""
        loaded: Loaded | None = None
        for settings in self.missing():
            loaded = loaded or self.load()
            self._run(settings, *loaded)

    def _run(self, settings: SearchSettings, model: Any, calibration: Calibration) -> None:
        timer, population = records.Run(), settings.population
        reset_peak(model.device)
        report = functools.partial(self.report, population)
        result = search(model, calibration, settings, storage=storage_of(self.folder, population), report=report)
        config = model_config(model, self.config["model"]) | {"suite": "search", "preset": "searched", "method": "rsparse"}
        config |= settings.known() | {"calibration": calibration.meta.label, "seq_len": calibration.meta.seq_len}
        config |= {"sink_tokens": calibration.meta.sink_tokens, "recipe_sha": result.recipe.sha()} | self.config
        metrics = metrics_of(result, settings.samples * calibration.meta.seq_len)
        if model.device.type == "cuda":
            metrics["peak_gpu_bytes"] = peak_bytes(model.device)
        result.recipe.save(self.folder / f"recipe-{population}.json")
        backend = resolve("auto", model.device, model.dtype).name  # what `search` takes
        records.write(record_file(self.folder, population), timer.record(config, metrics, backend=backend))
        cost = result.cost
        self.say(
            f"population {population}: {cost.candidates} candidates in {cost.seconds:.1f} s, of which factors "
            f"{cost.factors_seconds:.1f} s; {cost.candidate_seconds:.2f} s a candidate; {cost.stopped} stopped early"
        )


def metrics_of(result: SearchResult, tokens: int) -> dict[str, Any]:
    """A record's metrics; `tokens` are those that a candidate runs over. Seconds are of all calls that it took."""
    cost = result.cost
    return {
        "fitness": result.fitness,
        "sparse_only_fitness": result.sparse_only,
        "history": result.history,
        "evaluations": cost.candidates,
        "search_seconds": round(cost.seconds, 3),
        "factors_seconds": round(cost.factors_seconds, 3),
        "seconds_per_candidate": round(cost.candidate_seconds, 4),
        "stopped_early": round(cost.stopped / cost.candidates, 4),
        "tokens_per_candidate": tokens,
    }


def record_file(folder: Path, population: int) -> Path:
    return folder / f"population-{population}.json"


def storage_of(folder: Path, population: int) -> str:
    """The study of one population, an Optuna storage."""
    return f"sqlite:///{folder / f'population-{population}.db'}"
