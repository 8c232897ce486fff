"""What tools/make_results.py leaves of a page that is written by hand."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
BEGIN, END = "<!-- a: begin (tools/make_results.py) -->", "<!-- a: end -->"
OTHER = "<!-- b: begin (tools/make_results.py) -->\nkept\n<!-- b: end -->"


@pytest.fixture
def between(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("pages.markers").between


def test_a_block_replaces_what_was_between_its_markers(between, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nmiddle\n{OTHER}\nafter\n")
    assert between(path, {"a": "new"}) == f"before\n{BEGIN}\nnew\n{END}\nmiddle\n{OTHER}\nafter\n"
    assert between(path, {"a": "1", "b": "2"}) == f"before\n{BEGIN}\n1\n{END}\nmiddle\n{OTHER.replace('kept', '2')}\nafter\n"


@pytest.mark.parametrize(
    "text", ["", f"{BEGIN}\n", f"\n{END}", f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}", f"{BEGIN}\n{END}\n{END}"]
)
def test_a_page_with_a_lost_marker_is_left_alone(between, tmp_path, text):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(SystemExit) as leaving:
        between(path, {"a": "new"})
    said = str(leaving.value)
    assert said.endswith(f"page.md: it must have {BEGIN} and {END}, each once and in this order")
    assert "\n" not in said
