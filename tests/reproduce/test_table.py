"""Every table that ships, and what makes one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rsparse import published, reproduce
from rsparse.errors import RSparseError
from rsparse.reproduce.request import check_filters
from rsparse.reproduce.table import PAPER_METHOD
from tests.reproduce.requests import CHOICE, request


def test_tables_are_found_by_their_files():
    assert reproduce.names() == [
        "generation", "main", "oracle", "own-level", "parts", "quantised", "samples", "search-size", "searched",
    ]  # fmt: skip
    with pytest.raises(RSparseError, match="table 'magic' is unknown; choose among generation, "):
        reproduce.load("magic")


@pytest.mark.parametrize("name", reproduce.names())
def test_rows_can_run(name):
    table, asked = reproduce.load(name), request(generated={"sums": "y"})
    lines = asked.lines(table)
    assert len(set(lines)) == len(lines)
    assert lines[0].dense
    assert all(0 <= line.level < 1 for line in lines)
    assert any(line.method.name == PAPER_METHOD for line in lines)
    paths = [(variant.name, cell.path(Path("x"))) for variant, cell in set(asked.cells(table))]
    assert len(set(paths)) == len(paths)
    assert set(table.published) <= set(published.names())
    check_filters(asked, [table])


def test_the_papers_levels():
    main, own = (reproduce.load(name).rows(CHOICE) for name in ("main", "own-level"))
    assert {row.levels for row in main} == {(0.4, 0.5, 0.6, 0.7)}
    assert {row.method: row.levels for row in own if row.method in ("cats", "griffin")} == {"cats": (0.22,), "griffin": (0.33,)}
    assert {"relufication", "cats", "griffin", "teal", "wina"} <= {row.method for row in main}


def test_tables_load_without_torch():
    code = "import sys; from rsparse.reproduce import load, names; list(map(load, names())); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
