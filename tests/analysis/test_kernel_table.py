"""Kernel records as tables and a picture."""

from __future__ import annotations

import json

import pytest

from rsparse.analysis.kernel_plot import plot
from rsparse.analysis.kernel_table import load_records, markdown, protocol
from rsparse.errors import RSparseError
from tests.benchmark.kernel_rows import record, row


def test_table_and_plot(tmp_path):
    rows = [row("o", 0.0, 40.0), row("o", 0.5, 10.0), row("o", 0.5, 16.0, "recipe"), row("mlp", 0.5, 64.0)]
    rows.append({"unit": "qkv", "sparsity": 0.5, "ranks": "none", "batch": 1, "commit": "abc", "failed": "no memory"})
    made = [record(rows), record([row("down", 0.5, 20.0, model="gemma-7b")], "gemma-7b")]
    lines = markdown(made).splitlines()
    assert lines[0] == "## llama-2-7b on H100, bfloat16"
    assert "| o | 4096 → 4096 | 36.0 | 30.0 | 32.0 | 40.0 | rsparse | 40.0 (0.80×) | 10.0 (3.20×) |" in lines
    assert "|  |  |  |  |  |  | rsparse, low rank |  | 16.0 (2.00×) |" in lines
    assert "|  |  |  |  |  |  | masked tiles | 25.0 (1.28×) | 25.0 (1.28×) |" in lines
    assert "| o | none | 1.05 (35%) | 0.84 (28%) | 1.68 (56%) |" in lines  # 33.55 MB in 32 and 40 µs, half in 10
    assert any(line.startswith("| mlp | 4096 → 22016, 11008 → 4096 |") for line in lines)
    assert not any(line.startswith("| qkv") for line in lines)
    assert "## gemma-7b on H100, bfloat16" in lines
    assert protocol(made).endswith("PyTorch 2, Triton 3, median of 7, commit abc. The device copies at 3.00 TB/s.")
    plot(made, tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").read_bytes()[:4] == b"\x89PNG"


def test_a_folders_records_are_those_of_one_shape(tmp_path):
    made = {name: record([row("o", 0.5, 10.0, model=name)], name) for name in ("mistral-7b", "gemma-7b")}
    for name, each in made.items():
        (tmp_path / f"a-{name}.json").write_text(json.dumps(each))
    several = {
        "config": {"suite": "kernels", "models": list(made), "dtype": "bfloat16"},
        "metrics": made["gemma-7b"]["metrics"],
    }
    (tmp_path / "all.json").write_text(json.dumps(several))  # of `bench kernels --json`
    (tmp_path / "settings.json").write_text("{}")
    assert [each["config"]["model"] for each in load_records(tmp_path)] == ["gemma-7b", "mistral-7b"]


@pytest.mark.parametrize("without", ["suite", "model", "dtype"])
def test_what_is_no_record_is_named(tmp_path, without):
    made = record([row("o", 0.5, 10.0)])
    del made["config"][without]
    (tmp_path / "m.json").write_text(json.dumps(made))
    with pytest.raises(RSparseError, match=r"m.json is not a result record .*move it away"):
        load_records(tmp_path)
