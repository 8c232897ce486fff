"""Imports point down only: design.md §3, read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
import types
from pathlib import Path

import pytest

import rsparse

ROOT = Path(rsparse.__file__).parent

# Highest first. A package counts as a whole; imports within a level are fine.
LEVELS = [
    ["cli", "__main__"],
    ["integrations", "evaluation", "analysis", "benchmark", "reproduce", "report", "testing"],
    ["methods"],
    ["search", "compensation", "checkpoint", "runtime", "conversion"],
    ["sparse_linear", "sparse_model", "gated", "bytes_read", "calibration", "models", "losses", "settle"],
    ["criteria", "lowrank", "ops", "row_policy", "meter", "published"],
    [
        "recipe",
        "schema",
        "token_policy",
        "atomic",
        "errors",
        "progress",
        "fingerprint",
        "records",
        "quiet",
        "shards",
        "memory",
        "same",
    ],
]
HEIGHT = {name: len(LEVELS) - level for level, names in enumerate(LEVELS) for name in names}


def part_of(path):
    """The name in LEVELS that a source file belongs to; None for the package's own root."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def imported_parts(tree, module):
    """(line, part) of every import of rsparse, wherever it stands; `module` resolves relative ones."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            # `from rsparse import models` names a part, `from rsparse.models import x` has named it already
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "rsparse" else [base]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "rsparse" and rest:
                yield node.lineno, rest.partition(".")[0]


def upward_edges(path, source):
    here = part_of(path)
    # __init__ stands for its package, whose name is one shorter than its files'
    module = ".".join(["rsparse", *path.relative_to(ROOT).with_suffix("").parts])
    for line, there in imported_parts(ast.parse(source), module):
        if there in HEIGHT and HEIGHT[there] > HEIGHT[here]:
            yield f"{path.relative_to(ROOT)}:{line}: {here} imports {there}, which is above it"


SOURCES = sorted(path for path in ROOT.rglob("*.py") if part_of(path) is not None)


def test_every_file_has_its_level():
    missing = sorted({part for path in SOURCES if (part := part_of(path)) not in HEIGHT})
    assert not missing, f"add {', '.join(missing)} to LEVELS in {Path(__file__).name}, where design.md §3 has it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    if part_of(path) not in HEIGHT:
        pytest.skip("test_every_file_has_its_level speaks of it")
    edges = list(upward_edges(path, path.read_text(encoding="utf-8")))
    assert not edges, "\n".join(edges)


@pytest.mark.parametrize(
    "source",
    [
        "import rsparse.conversion",
        "from rsparse import methods",
        "from rsparse.cli.main import run",
        "from ..cli import run",
        "def f():\n    from rsparse.evaluation import perplexity",
        "if True:\n    import rsparse.checkpoint as c, rsparse.errors",
    ],
)
def test_the_reader_finds_upward_edges(source):
    assert len(list(upward_edges(ROOT / "models" / "layout.py", source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from rsparse.errors import RSparseError",
        "from rsparse.sparse_model import state",
        "from . import spec",
        "from .. import ops",
        "from rsparse import __version__",
        "import torch",
    ],
)
def test_the_reader_lets_the_others_pass(source):
    assert not list(upward_edges(ROOT / "models" / "layout.py", source))


def loaded_after(statement):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("statement", ["import rsparse; dir(rsparse)", "from rsparse import Recipe, TokenPolicy, RSparseError"])
def test_the_package_and_its_recipes_load_without_torch(statement):
    modules = loaded_after(statement)
    assert "rsparse" in modules
    assert not modules & {"torch", "transformers", "triton", "numpy", "safetensors", "datasets"}


@pytest.mark.parametrize("name", rsparse.__all__)
def test_public_names_are_what_they_say_each_time(name):
    """Importing a submodule sets an attribute of its name on the package, which hides __getattr__ from then on."""
    for _ in range(2):
        found = getattr(rsparse, name)
        assert not isinstance(found, types.ModuleType), f"rsparse.{name} is a module"
        assert found.__module__.startswith("rsparse.")


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = rsparse.nonsense
