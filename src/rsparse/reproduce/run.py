"""Runs the cells of tables: the model is loaded once, a recipe made once for all that is measured of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rsparse import records
from rsparse.benchmark.failures import note, reason_of
from rsparse.benchmark.grid import Cell, CellList, model_label, text_label
from rsparse.benchmark.quality import QualityBench, cell_name
from rsparse.benchmark.settings import Parts, check_parts, keeping, parts_of
from rsparse.benchmark.workbench import Prepared
from rsparse.errors import RefusedError, RSparseError
from rsparse.evaluation.describe import short
from rsparse.reproduce.request import Request, folder_of
from rsparse.reproduce.searches import Searches
from rsparse.reproduce.table import Table, Variant
from rsparse.reproduce.weights import GROUP, rounded_weights

REFUSED = "refused"  # config.suite of a record that says why there is no figure


class Reproduction:
    """The cells of `tables` in `folder`, each a record; what is there already is left alone.

    `load` gives (model, tokenizer), and is called where there is something to run. `tasks` are the harness's, of which those of
    `request.generated` generate text.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        request: Request,
        folder: Path,
        load: Callable[[str], tuple[Any, Any]],
        tasks: Sequence[Any] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        self.tables, self.request, self.folder, self.load, self.tasks, self.say = tables, request, folder, load, tasks, say
        self.failed: list[str] = []
        self._loaded: tuple[Any, Any] | None = None

    def parts(self) -> dict[Variant, list[Cell]]:
        """Cells by variant, each once, the folder's own first and those of changed weights last."""
        found: dict[Variant, dict[Cell, None]] = {}
        for table in self.tables:
            for variant, cell in self.request.cells(table):
                found.setdefault(variant, {})[cell] = None
        order = sorted(found, key=lambda variant: (bool(variant.name), variant.weight_bits is not None))
        return {variant: list(found[variant]) for variant in order}

    def check(self) -> None:
        """Raises RSparseError where a folder holds cells of another protocol."""
        for variant in self.parts():
            check_parts(folder_of(self.folder, variant), self._protocol(variant))

    def open(self) -> None:
        """Load the model where a cell is missing. Raises RSparseError: without it every cell would fail alike."""
        parts = self.parts().items()
        if all(cell.path(folder_of(self.folder, variant)).exists() for variant, cells in parts for cell in cells):
            return
        try:
            self._load(self.request.model)
        except (RSparseError, OSError):
            raise
        except Exception as error:
            raise RSparseError(f"cannot load {self.request.model} ({type(error).__name__}: {error})") from error

    def run(self) -> list[str]:
        """Run what is missing; returns a line for each cell that failed. Raises what `check` does."""
        self.check()
        parts = self.parts()
        for number, (variant, cells) in enumerate(parts.items(), 1):
            folder = folder_of(self.folder, variant)
            if missing := sum(not cell.path(folder).exists() for cell in cells):
                if len(parts) > 1:
                    name = variant.name or "the folder's own protocol"
                    self.say(f"part {number} of {len(parts)}, {name}: {missing} cells to run")
                self._run(variant, cells, folder)
        return self.failed

    def _run(self, variant: Variant, cells: list[Cell], folder: Path) -> None:
        prepared = None
        if variant.searches:
            with keeping(folder, self._protocol(variant)):  # as the bench behind it does
                prepared = self._searched(variant, cells, folder)
            if prepared is None:
                return
        config = config_of(variant)
        with contextlib.ExitStack() as stack:

            def load(name: str) -> tuple[Any, Any]:
                model, tokenizer = self._load(name)
                if variant.weight_bits is not None:
                    stack.enter_context(rounded_weights(model, variant.weight_bits))
                return model, tokenizer

            bench = QualityBench(
                CellList([self.request.model], self.request.texts, cells), self.request.settings_of(variant), folder, load,
                [task for task in self.tasks if (task.task_name in self.request.generated) == variant.generates], self.say,
                refused=lambda cell, error: refuse(cell, error, folder, config), prepared=prepared, config=config,
            )  # fmt: skip
            self.failed += bench.run()

    def _searched(self, variant: Variant, cells: list[Cell], folder: Path) -> Prepared | None:
        """Recipes of the cells' searches; None where one failed, of which each cell then has a note."""
        try:
            return Searches(self.request.settings_of(variant), folder, self._load, self.say).run(cells)
        except Exception as error:  # as a cell's: the other parts go on
            reason = reason_of(error)
            for cell in (cell for cell in cells if not cell.path(folder).exists()):
                note(cell.path(folder), cell_name(cell), reason)
            self.failed.append(f"{variant.name}: {reason}")
            self.say(f"failed: {self.failed[-1]}")
            return None

    def _protocol(self, variant: Variant) -> Parts:
        """What the variant's folder keeps."""
        settings, model = self.request.settings_of(variant), self.request.model
        texts = {text_label(name): name for name in (*self.request.texts, settings.calibration_data)}
        return parts_of(settings, {model_label(model): model}, texts)

    def _load(self, name: str) -> tuple[Any, Any]:
        self._loaded = self._loaded or self.load(name)
        return self._loaded


def config_of(variant: Variant) -> dict[str, Any]:
    """What the records of a variant say beside the bench's own."""
    if variant.weight_bits is None:
        return {}
    return {"weights": f"int{variant.weight_bits}, groups of {GROUP}, rounded to nearest"}


def refuse(cell: Cell, error: RefusedError, folder: Path, config: Mapping[str, Any]) -> None:
    """The record of a cell that its method cannot have."""
    found: dict[str, Any] = {"model": short(cell.model), "suite": REFUSED, "preset": cell.method.label}
    found |= {"method": cell.method.name, "sparsity": cell.sparsity, "token_policy": str(cell.token_policy), **config}
    found |= {} if cell.text is None else {"data": short(cell.text)}
    records.write(cell.path(folder), records.Run().record(found, {"refused": str(error)}))
