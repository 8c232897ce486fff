"""Published figures, as data: one file a set, each with its source, its token policy and the models that it is of.

`table` is the number of the table in the paper, None where the source that was read does not give it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsparse.errors import RSparseError

FOLDER = Path(__file__).parent
PAPER = "2504.19449"


@dataclass(frozen=True)
class Figure:
    """One figure. `mean` in the set's metric, `tasks` by lm-evaluation-harness's names where they are published; `model` and
    `sparsity` are None where the source does not state them; `options` are of the method."""

    model: str | None
    method: str
    sparsity: float | None
    mean: float
    origin: str
    tasks: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """A set of figures of one source, all under `token_policy`: they may be compared with figures of that policy alone."""

    name: str
    source: str
    arxiv: str
    table: int | None
    token_policy: str
    metric: str
    rows: tuple[Figure, ...]
    note: str = ""

    @property
    def lower_is_better(self) -> bool:
        return self.metric.startswith("perplexity")

    def provenance(self) -> str:
        """Where the figures are from, for a note below a table."""
        table = f"table {self.table}" if self.table is not None else "number of the table unknown"
        origins = "; ".join(dict.fromkeys(row.origin for row in self.rows))
        note = f" {self.note}" if self.note else ""
        where = f"{self.source}, arXiv {self.arxiv}, {table}"
        return f"{where}; {self.metric}; token policy {self.token_policy}; read from: {origins}.{note}"


def names() -> list[str]:
    """Sets that have a file here."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Figures:
    """The set `name`. Raises RSparseError for one that is not there, and for a file that is not as above."""
    if name not in names():
        raise RSparseError(f"there is no set {name!r} of published figures; there are {', '.join(names())}")
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    try:
        rows = tuple(Figure(**row) for row in data.pop("rows"))
        return Figures(name=name, rows=rows, **data)
    except (KeyError, TypeError) as error:
        raise RSparseError(f"the published figures {name!r} are damaged ({error})") from error


def to_dict(figure: Figure) -> dict[str, Any]:
    """For a record: without what the source does not give."""
    return {name: value for name, value in dataclasses.asdict(figure).items() if value not in (None, {})}
