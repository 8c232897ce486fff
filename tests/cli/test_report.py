"""rsparse report, as a shell sees it."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import bad, good


def test_a_record_of_eval_becomes_a_page(here):
    good("eval", "sparse", "--perplexity", "test.txt", "--seq-len", "24", "--json", "results/eval.json")
    said = good("report", "results", "-o", "pages/report.html", "--title", "Ours & theirs").out
    page = (here / "pages" / "report.html").read_text()
    assert said.startswith("pages/report.html: 1 records, ")
    assert "<h1>Ours &amp; theirs</h1>" in page
    value = json.loads((here / "results" / "eval.json").read_text())["metrics"]["perplexity"]
    assert f">{value:.2f}<" in page
    assert [path.name for path in (here / "pages").iterdir()] == ["report.html"]


def test_analyses_say_in_the_page_what_they_said_at_the_terminal(here):
    lines = good("analyze", "rank", "dense", "-o", "results").out.splitlines()
    good("report", "results", "-o", "report.html")
    page = (here / "report.html").read_text()
    assert all(line.replace("'", "&#39;") in page for line in lines)
    assert "data:image/png;base64," in page


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("none is not there", ["none", "-o", "report.html"]),
        ("text.txt is a file", ["text.txt", "-o", "report.html"]),
        ("holds no .json file", ["empty", "-o", "report.html"]),
        ("must end in .html", ["empty", "-o", "report.pdf"]),
        ("is a folder; name a file", ["empty", "-o", "taken.html"]),
        ("text.txt is a file", ["empty", "-o", "text.txt/report.html"]),
        ("the following arguments are required", ["empty"]),
    ],
)
def test_bad_input_is_one_line(here, says, arguments):
    (here / "empty").mkdir()
    (here / "taken.html").mkdir()
    bad(says, "report", *arguments)
    assert not (here / "report.html").exists()
