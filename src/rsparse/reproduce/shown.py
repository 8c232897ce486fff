"""What a folder of records was measured on: a table that is shown needs the names of tasks and texts alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rsparse.benchmark.grid import model_label
from rsparse.benchmark.settings import Settings, kept_parts
from rsparse.errors import RSparseError
from rsparse.reproduce.request import Request, folder_of
from rsparse.reproduce.table import BASE, PAPER, Choice, Table, load, names
from rsparse.token_policy import TokenPolicy


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


def request_of(folders: Sequence[Path], model: str, policies: Iterable[TokenPolicy], texts: Iterable[str]) -> Request:
    """All of the paper's tables of `model` on `texts`, under the protocol that `folders` share. Raises RSparseError where they
    do not, or one is no folder of records."""
    kept = [kept_parts(folder, ["settings", "tasks"]) for folder in folders]
    for folder, parts in zip(folders, kept, strict=True):
        if not parts:
            raise RSparseError(f"{folder} has no settings.json; tables need a folder of records")
        if parts != kept[0]:
            raise RSparseError(f"{folder} has another protocol than {folders[0]}: their settings.json differ")
    settings = Settings(**kept[0]["settings"], tasks=kept[0]["tasks"])
    tables = [load(name) for name in names()]
    generated: dict[str, str] = {}
    for folder in folders:
        generated |= tasks_of(folder, tables, PAPER)[1]
    return Request(model, tuple(policies), tuple(texts), settings, generated, PAPER)


def texts_of(folder: Path, model: str) -> list[str]:
    """Texts that cells of `model` were tried on, in the order in which the folder came to know them."""
    labels = kept_parts(folder, ["texts"]).get("texts", {})  # the calibration's is among them, and has no cell
    cells = [path.name.rpartition(".")[0] for path in (folder / model_label(model)).glob("*.*")]
    ends = [[label for label in labels if cell.endswith(f"-{label}")] for cell in cells]
    tried = {max(each, key=len) for each in ends if each}  # `small-wiki` ends as `wiki` does
    return [f"{label}.txt" for label in labels if label in tried]  # a label is a file's stem
