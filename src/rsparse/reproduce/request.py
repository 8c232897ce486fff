"""What a caller asks of tables, and the cells that this makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rsparse.benchmark.grid import DENSE, Cell
from rsparse.benchmark.settings import Settings
from rsparse.errors import RSparseError
from rsparse.methods import MethodSpec
from rsparse.reproduce.naming import title
from rsparse.reproduce.table import BASE, PAPER_METHOD, Choice, Table, Variant
from rsparse.token_policy import TokenPolicy


@dataclass(frozen=True)
class Line:
    """One line of a table: a method at a level, in a variant. The dense model is at level 0."""

    variant: Variant
    method: MethodSpec
    level: float

    @property
    def dense(self) -> bool:
        return self.method == DENSE

    @property
    def label(self) -> str:
        name = title(self.method)
        return f"{name}, {self.variant.title}" if self.variant.title else name


@dataclass(frozen=True)
class Request:
    """`settings` are the folder's protocol, its tasks those that score likelihoods; `generated`: stamps of the tasks that
    generate text. `methods` and `levels` leave a part of each table, all of it where they are None."""

    model: str
    policies: tuple[TokenPolicy, ...]
    texts: tuple[str, ...]
    settings: Settings
    generated: Mapping[str, str]
    choice: Choice
    methods: tuple[str, ...] | None = None
    levels: tuple[float, ...] | None = None

    def lines(self, table: Table) -> list[Line]:
        """The table's, after the dense model of each kind of weights or tasks."""
        found: dict[Variant, list[Line]] = {}
        for row in table.rows(self.choice):
            spec = self.spec(row.method, table)
            if self.methods is not None and spec.name not in self.methods:
                continue
            for variant in row.variants:
                if not any(self.measures(table, variant)):
                    continue
                levels = [each for each in row.levels if self.levels is None or not each or each in self.levels]
                found.setdefault(variant, []).extend(Line(variant, spec, level) for level in levels)
        result: dict[Line, None] = {}
        for variant, lines in found.items():
            for line in (Line(variant if variant.own_dense else BASE, DENSE, 0.0), *lines) if lines else ():
                result[line] = None
        return list(result)

    def spec(self, method: str, table: Table) -> MethodSpec:
        """A row's method; the paper's own with what the caller chose of the search, but for what the table varies."""
        spec = MethodSpec.parse(method)
        if spec.name != PAPER_METHOD:
            return spec
        own = dict(spec.options)
        chosen = {name: value for name, value in self.choice.searched if name not in own or name not in table.varies}
        options = own | chosen
        if not options:
            return spec
        return MethodSpec.parse(f"{spec.name}:" + ",".join(f"{name}={value}" for name, value in sorted(options.items())))

    def measures(self, table: Table, variant: Variant) -> tuple[bool, bool]:
        """(tasks, texts) that a variant's cells are measured on."""
        if variant.generates:
            return bool(self.generated), False
        return table.tasks and bool(self.settings.tasks), table.texts and bool(self.texts)

    def cells(self, table: Table) -> Iterator[tuple[Variant, Cell]]:
        """All of the table's, some of them twice."""
        for line in self.lines(table):
            tasks, texts = self.measures(table, line.variant)
            for text in self.texts if texts else ():
                for policy in self.policies:
                    yield line.variant, self.cell(line, policy, text)
            for policy in self.policies if tasks else ():
                yield line.variant, self.cell(line, policy, None)

    def cell(self, line: Line, policy: TokenPolicy, text: str | None) -> Cell:
        """Where one figure of a line is."""
        dense_tasks = line.dense and text is None  # the same under every policy
        return Cell(self.model, line.method, line.level, TokenPolicy("dense") if dense_tasks else policy, text)

    def settings_of(self, variant: Variant) -> Settings:
        """The protocol of a variant's subfolder."""
        settings = self.settings
        if variant.windows is not None:
            tokens = variant.windows * settings.seq_len
            settings = dataclasses.replace(settings, calibration_tokens=tokens)
        return dataclasses.replace(settings, tasks=dict(self.generated)) if variant.generates else settings


def folder_of(folder: Path, variant: Variant) -> Path:
    return folder / variant.name if variant.name else folder


def check_filters(request: Request, tables: Sequence[Table]) -> None:
    """Raises RSparseError where nothing is left of the tables, and for a method or level that none of them has."""
    rows = [row for table in tables for row in table.rows(request.choice)]
    methods = {MethodSpec.parse(row.method).name for row in rows}
    levels = {level for row in rows for level in row.levels if level}
    if unknown := sorted(set(request.methods or ()) - methods):
        raise RSparseError(f"no table here has method {unknown[0]!r}; they have {', '.join(sorted(methods))}")
    if absent := sorted(set(request.levels or ()) - levels):
        known = ", ".join(f"{level:g}" for level in sorted(levels))
        raise RSparseError(f"no table here has level {absent[0]:g}; they have {known}")
    if not any(request.lines(table) for table in tables):
        raise RSparseError("nothing is left of the tables; ask for others, or for other --method, --levels, tasks or texts")
