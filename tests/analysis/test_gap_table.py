"""What of sparse-only's loss is won back, by hand."""

from __future__ import annotations

import math

import pytest

from rsparse.analysis.gap_table import gap_closed, gap_tables
from tests.analysis.tables import cells


def record(preset, level, text, perplexity, *, compensation="", model="tiny.gguf", size=2_000_000):
    config = {"model": model, "preset": preset, "sparsity": level, "data": text, "token_policy": "all"}
    metrics = {"perplexity": perplexity, "bytes_per_token": size}
    return {"config": config | {"compensation": compensation}, "metrics": metrics}


BOTH = [
    record("dense", 0.0, "a.txt", 10.0), record("dense", 0.0, "b.txt", 20.0),
    record("sparse_only", 0.5, "a.txt", 14.0), record("sparse_only", 0.5, "b.txt", 30.0),
    record("teal", 0.5, "a.txt", 13.0), record("teal", 0.5, "b.txt", 25.0),
    record("best", 0.5, "a.txt", 11.0, compensation="c4", size=2_100_000),
    record("best", 0.5, "b.txt", 22.0, compensation="c4", size=2_100_000),
]  # fmt: skip


def test_gap_closed():
    assert gap_closed(13.0, 14.0, 10.0) == 0.25
    assert gap_closed(14.0, 14.0, 10.0) == 0
    assert gap_closed(10.0, 14.0, 10.0) == 1
    assert gap_closed(18.0, 14.0, 10.0) == -1
    assert math.isnan(gap_closed(10.0, 10.0, 10.0))
    assert math.isnan(gap_closed(10.0, 9.0, 10.0))


def test_two_leagues_each_with_its_own_table():
    lines = gap_tables(BOTH, ["a.txt", "b.txt"])
    assert [line for line in lines if line.startswith("**")] == ["**Nothing fitted by gradient**", "**Compensated**"]
    rows = [cells(line) for line in lines if line.startswith("| tiny")]
    assert rows == [
        ["tiny", "50%", "teal", "13.00 (25%)", "25.00 (50%)", "38%", "2.0"],
        ["tiny", "50%", "best", "11.00 (75%)", "22.00 (80%)", "78%", "2.1"],
    ]
    assert lines.index("**Compensated**") < next(place for place, line in enumerate(lines) if "| best |" in line)
    assert next(place for place, line in enumerate(lines) if "| teal |" in line) < lines.index("**Compensated**")


@pytest.mark.parametrize("missing", [("best", "b.txt"), ("dense", "a.txt"), ("sparse_only", "b.txt")])
def test_a_row_without_all_texts_or_without_what_it_is_compared_with_is_left_out(missing):
    records = [r for r in BOTH if (r["config"]["preset"], r["config"]["data"]) != missing]
    assert not any("| best |" in line for line in gap_tables(records, ["a.txt", "b.txt"]))


def test_the_best_first_within_a_level_and_what_is_hopeless_not_at_all():
    more = [record("better", 0.5, "a.txt", 12.0), record("near", 0.5, "a.txt", 18.0), record("poor", 0.5, "a.txt", 18.1)]
    lines = gap_tables([*BOTH, *more], ["a.txt"])
    assert [cells(line)[2] for line in lines if line.startswith("| tiny")] == ["better", "teal", "near", "best"]


def test_a_model_is_compared_with_its_own_dense():
    other = [record(preset, level, "a.txt", value, model="b.gguf") for preset, level, value in (
        ("dense", 0.0, 1.0), ("sparse_only", 0.5, 3.0), ("teal", 0.5, 2.0),
    )]  # fmt: skip
    rows = [cells(line) for line in gap_tables([*BOTH, *other], ["a.txt"]) if line.startswith(("| tiny", "| b"))]
    assert [row[:4] for row in rows if row[2] == "teal"] == [
        ["b", "50%", "teal", "2.00 (50%)"], ["tiny", "50%", "teal", "13.00 (25%)"],
    ]  # fmt: skip
