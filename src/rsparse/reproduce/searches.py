"""The searches of several populations: kept with their course, and their recipes reused by the cells."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rsparse.benchmark.grid import Cell, model_label
from rsparse.benchmark.search import SearchBench, record_file
from rsparse.benchmark.settings import Settings, keeping
from rsparse.benchmark.workbench import Prepared, Workbench
from rsparse.errors import RSparseError
from rsparse.evaluation.describe import short
from rsparse.methods import MethodSpec, check
from rsparse.recipe import Recipe
from rsparse.reproduce.request import Request
from rsparse.reproduce.table import PAPER_METHOD, Table
from rsparse.search import SearchSettings
from rsparse.search.run import Progress


def searches_folder(folder: Path, model: str) -> Path:
    """Where the searches of a model are, below the folder of the cells that use them."""
    return folder / model_label(model) / "search"


class Searches:
    """Runs the searches that cells of the paper's method ask for, with `rsparse bench search`'s core; resumes."""

    def __init__(
        self, settings: Settings, folder: Path, load: Callable[[str], tuple[Any, Any]], say: Callable[[str], None]
    ) -> None:
        self.settings, self.folder, self.load, self.say = settings, folder, load, say
        self._generation: tuple[int, int] | None = None

    def run(self, cells: Iterable[Cell]) -> Prepared:
        """Recipes by method, options and level. Raises RSparseError where the folder's searches are others."""
        found: dict[tuple[str, Any, float], tuple[Recipe, float]] = {}
        wanted = {(cell.model, cell.method, cell.sparsity): None for cell in cells if cell.method.name == PAPER_METHOD}
        groups: dict[tuple[str, SearchSettings], list[MethodSpec]] = {}
        for model, method, level in wanted:
            settings = search_settings(method, level, self.settings.seed)
            groups.setdefault((model, dataclasses.replace(settings, population=2)), []).append(method)
        for (model, settings), methods in groups.items():
            folder = searches_folder(self.folder, model)
            self._search(model, settings, methods, folder)
            for method in methods:
                population = search_settings(method, settings.sparsity, self.settings.seed).population
                seconds = json.loads(record_file(folder, population).read_text(encoding="utf-8"))["metrics"]["search_seconds"]
                recipe = dataclasses.replace(Recipe.load(folder / f"recipe-{population}.json"), method=PAPER_METHOD)
                found[method.name, method.options, settings.sparsity] = recipe, seconds
        return found

    def _search(self, model: str, settings: SearchSettings, methods: Sequence[MethodSpec], folder: Path) -> None:
        populations = [search_settings(method, settings.sparsity, settings.seed).population for method in methods]

        def load() -> tuple[Any, Any]:
            bench = Workbench(model, *self.load(model), self.settings, ())
            return bench.model, bench.calibration

        with keeping(folder, {"settings": settings.of_a_folder()}):
            SearchBench(populations, settings, folder, load, {"model": short(model)}, self.say, self._report).run()

    def _report(self, population: int, progress: Progress) -> None:
        if self._generation != (population, progress.generation):
            self._generation = population, progress.generation
            where = f"population {population}, generation {progress.generation + 1}"
            left = f"about {progress.seconds_left:.0f} s left"
            self.say(f"{where}: {progress.done} of {progress.total} candidates, {left}")


def check_windows(request: Request, tables: Sequence[Table]) -> None:
    """Raises RSparseError where the calibration holds fewer windows than a search takes, before the other cells run."""
    for line in (line for table in tables for line in request.lines(table) if line.method.name == PAPER_METHOD):
        settings = request.settings_of(line.variant)
        wanted = search_settings(line.method, line.level, settings.seed).samples
        tokens, length = settings.calibration_tokens, settings.seq_len
        windows = tokens // length
        if windows < wanted:
            raise RSparseError(
                f"the search of R-Sparse takes {wanted} windows of {length} tokens, and --calibration-tokens {tokens} holds "
                f"{windows}; give {wanted * length}, or --searched samples={windows}"
            )


def search_settings(method: MethodSpec, level: float, seed: int) -> SearchSettings:
    """The search that the method `searched` runs with these options."""
    return SearchSettings(level, **({"seed": seed} | check(method.name, options=dict(method.options))))
