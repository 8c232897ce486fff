"""The bench's records as tables and pictures."""

from __future__ import annotations

from copy import deepcopy

import pytest

from rsparse.analysis import decode_plot
from rsparse.analysis.decode_plot import plot
from rsparse.analysis.decode_table import by_kind, by_length, load_records, markdown
from rsparse.errors import RSparseError


def test_table_and_plot(folder, tmp_path):
    records = load_records(folder)
    names = {"_attend": 0.5, "_gather": 2.0, "strange": 0.25}
    trace = {"kernels": {name: {"ms": ms, "launches": 1} for name, ms in names.items()}}
    trace |= {"others_ms": 0.05, "busy_ms": 2.8, "span_ms": 3.0}
    records[0]["metrics"]["kernels"] = records[0]["metrics"]["dense_kernels"]["steps"] = trace
    text = markdown(records)
    first = records[0]["metrics"]
    row = next(line for line in text.splitlines() if line.startswith("| 40% | "))
    for value in (f"{first['achieved_sparsity']:.2%}", f"{first['speedup']:.3f}", f"{first['speedup_by_bytes']:.3f}"):
        assert f" {value} " in row
    assert "| 40%, none | 0.500 | 2.000 | 0.000 | 0.300 | 0.200 |" in text
    assert by_kind(first["kernels"]) == {"attention": 0.5, "linears": 2.0, "select and norms": 0.0, "other": 0.3}
    plot(records, tmp_path / "decode.png")
    assert (tmp_path / "decode.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table_by_length(folder):
    record = load_records(folder)[0]
    config, metrics = record["config"], record["metrics"]
    metrics["by_length"] = {"128": {"tokens_per_second": 30.0, "with_prefill": 24.0}}
    metrics["dense"][metrics["dense_best"]]["by_length"] = {"128": {"tokens_per_second": 20.0, "with_prefill": 18.0}}
    assert by_length([record]).splitlines()[2:] == [
        f"| {config['model']} | 40% | none | 128 | 20.0 | 30.0 | 1.500 | 18.0 | 24.0 | 1.333 |"
    ]


@pytest.mark.parametrize("given", [True, False])
def test_the_plot_over_length(folder, tmp_path, monkeypatch, given):
    """Sparse and dense rates of the records over length, or of those with most new tokens where there are none."""
    drawn, real = {}, decode_plot._rates
    monkeypatch.setattr(
        decode_plot, "_rates", lambda axis, records: (real(axis, records), drawn.update(lines=list(axis.lines)))
    )
    first, second, _ = load_records(folder)
    for record, rate in ((first, 30.0), (second, 50.0)):
        metrics = record["metrics"]
        for each, less in ((metrics, 0), (metrics["dense"][metrics["dense_best"]], 10)):
            each["by_length"] = {length: {"tokens_per_second": rate - less + int(length)} for length in ("128", "256")}
    longer = deepcopy(first)
    longer["config"]["new_tokens"] *= 2
    plot([second] if given else [second, longer], tmp_path / "decode.png", [first] if given else ())
    sparse, dense = drawn["lines"]
    assert (list(sparse.get_xdata()), list(sparse.get_ydata())) == ([128, 256], [158.0, 286.0])
    assert list(dense.get_ydata()) == [148.0, 276.0]
    assert sparse.get_label().endswith(", 40%")
    assert dense.get_label().endswith(", dense")


def test_files_that_are_no_records(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x.json").write_text("{}")
    with pytest.raises(RSparseError, match="not a result record"):
        load_records(tmp_path)
