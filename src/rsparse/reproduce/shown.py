"""What a folder of records was measured on: a table that is shown runs nothing, and needs neither tasks nor texts themselves."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from rsparse.benchmark.grid import model_label
from rsparse.benchmark.settings import kept_parts
from rsparse.errors import RSparseError
from rsparse.reproduce.request import folder_of
from rsparse.reproduce.table import BASE, Choice, Table


def check_holds(folder: Path, model: str) -> None:
    """Raises RSparseError where `folder` has no cells of `model`."""
    if not folder.exists():
        raise RSparseError(f"{folder} is not there; --show needs a folder of records")
    name = model_label(model)
    if not (folder / name).is_dir():
        models = sorted(kept_parts(folder, ["models"]).get("models", {}))
        raise RSparseError(f"{folder} holds nothing of {name}" + (f"; it has {', '.join(models)}" if models else ""))


def tasks_of(folder: Path, tables: Iterable[Table], choice: Choice) -> tuple[dict[str, str], dict[str, str]]:
    """(tasks that score likelihoods, tasks that generate text): stamps by name, as `folder` and the parts of it that `tables`
    have for generated text keep them."""
    variants = [variant for table in tables for row in table.rows(choice) for variant in row.variants if variant.generates]
    generated: dict[str, str] = {}
    for variant in variants:
        generated |= kept_parts(folder_of(folder, variant), ["tasks"]).get("tasks", {})
    return kept_parts(folder_of(folder, BASE), ["tasks"]).get("tasks", {}), generated


def texts_of(folder: Path, model: str) -> list[str]:
    """Texts that cells of `model` were tried on, in the order in which the folder came to know them."""
    cells = folder / model_label(model)
    labels = kept_parts(folder, ["texts"]).get("texts", {})  # the calibration's is among them, and has no cell
    return [f"{label}.txt" for label in labels if any(cells.glob(f"*-{glob.escape(label)}.*"))]  # a label is a file's stem
