"""The cells of a quality bench, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsparse.errors import RSparseError
from rsparse.evaluation.describe import short
from rsparse.methods import MethodSpec
from rsparse.token_policy import TokenPolicy

DENSE = MethodSpec("dense")


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
class CellList:
    """Cells one by one, where they are no grid."""

    models: Sequence[str]
    texts: Sequence[str]
    listed: Sequence[Cell]

    def cells(self, model: str) -> Iterator[Cell]:
        """A model's cells, in their order."""
        return (cell for cell in self.listed if cell.model == model)


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
        if not self.policies:
            raise RSparseError("there is no token policy")
        labels = {
            "models": list(map(model_label, self.models)),
            "texts": list(map(text_label, self.texts)),
            "methods": [method.label for method in self.methods],
            "levels": [f"{level:g}" for level in self.levels],
            "token policies": [str(policy) for policy in self.policies],
        }
        for what, names in labels.items():
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise RSparseError(f"two {what} are called {twice}, and their records would have one name")

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
