"""Which articles tools/make_summaries.py takes, and what it makes of them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Those of articles with these texts."""
    monkeypatch.syspath_prepend(TOOLS)
    module = importlib.import_module("make_summaries")

    def made(*texts):
        path = tmp_path / "articles.jsonl"
        path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
        return list(module.rows(path))

    return made


def article(lead=15, body=120):
    return f"Rivers\n\n{'lead ' * lead}\n\n{'first ' * (body - 1)}\n\nlast\n"


def test_the_first_paragraph_is_the_summary_of_the_others(rows):
    (row,) = rows(article())
    assert row["summary"] == " ".join(["lead"] * 15)
    assert row["context"] == f"Rivers\n{' '.join(['first'] * 119)}\nlast\n\nSummary of the article about Rivers:"


@pytest.mark.parametrize(("lead", "body"), [(14, 120), (81, 120), (15, 119), (15, 601)])
def test_articles_that_are_too_long_or_too_short_are_left_out(rows, lead, body):
    assert rows(article(lead, body)) == []


def test_the_limits_are_in(rows):
    assert len(rows(article(15, 120), article(80, 600))) == 2


@pytest.mark.parametrize("text", ["", "Rivers", "Rivers\n\n" + "lead " * 15])
def test_articles_without_parts_are_left_out(rows, text):
    assert rows(text) == []


def test_a_line_separator_does_not_end_a_row(rows):
    assert len(rows(article().replace("last", "last\u2028line"))) == 1


@pytest.mark.parametrize("text", [5, None, ["Rivers"]])
def test_a_row_that_is_no_article_is_named(rows, text):
    with pytest.raises(ValueError, match=r"^row 2 is no JSON object with a string `text`"):
        rows(article(), text)
