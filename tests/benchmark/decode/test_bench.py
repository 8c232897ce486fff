"""A record of each cell: what is counted in it, and what a second run does."""

from __future__ import annotations

import json

import pytest
import torch

from rsparse.analysis.decode_table import load_records
from rsparse.benchmark.decode.bench import DecodeSettings, cells_of, kv_bytes
from rsparse.benchmark.decode.source import Shape
from rsparse.errors import RSparseError
from rsparse.models.layout import linear_weights
from tests.benchmark.decode.benches import CELLS, CPU, bench, shape
from tests.support.models import tiny_model


def test_a_record(folder):
    records = load_records(folder)
    assert [(r["config"]["sparsity"], r["config"]["ranks"]) for r in records] == [
        (0.4, "none"),
        (0.5, "none"),
        (0.5, "quarter"),
    ]
    for record in records:
        config, metrics = record["config"], record["metrics"]
        assert (config["suite"], config["model"], config["weights"], config["batch"]) == ("decode", "tiny-llama", "random", 1)
        assert (config["prompt_tokens"], config["new_tokens"], config["repeats"], config["dtype"]) == (16, 12, 2, "float32")
        assert "SmolLM2" in config["masks"]
        assert record["env"]["backend"] == "reference"
        rates = {name: each["tokens_per_second"] for name, each in metrics["dense"].items()}
        assert list(rates) == ["steps", "steps-cublas"]
        assert metrics["dense_tokens_per_second"] == max(rates.values()) == rates[metrics["dense_best"]]
        assert metrics["speedup"] == pytest.approx(metrics["tokens_per_second"] / max(rates.values()), rel=1e-3)
        assert metrics["speedup_cublas"] == pytest.approx(metrics["tokens_per_second"] / rates["steps-cublas"], rel=1e-3)
        assert metrics["achieved_sparsity"] == pytest.approx(config["sparsity"], abs=0.02)
    assert {r["metrics"]["dense_tokens_per_second"] for r in records} == {records[0]["metrics"]["dense_tokens_per_second"]}


def test_bytes_are_counted(folder):
    record = load_records(folder)[0]
    model, metrics = shape().load(), record["metrics"]
    dense = 4 * (linear_weights(model) + model.lm_head.weight.numel())
    kv = 4 * 2 * 2 * 24 * 22  # bytes · (k, v) · blocks · kv_heads · head_dim · mean of 17 … 27
    size = dense - 4 * linear_weights(model) * metrics["achieved_sparsity"]
    assert metrics["dense_bytes_per_token"] == dense
    assert metrics["kv_bytes_per_token"] == kv
    assert metrics["bytes_per_token"] == pytest.approx(size, rel=1e-4)
    assert metrics["speedup_by_bytes"] == pytest.approx((dense + kv) / (size + kv), rel=1e-3)
    assert metrics["speedup_of_linears"] == pytest.approx(1 / (1 - metrics["achieved_sparsity"]), rel=1e-3)
    seconds = metrics["ms_per_token"] / 1000
    assert metrics["bytes_per_second"] == pytest.approx((size + kv) / seconds, rel=1e-3)


def test_a_window_bounds_what_a_step_reads():
    settings = DecodeSettings(10, 8, 1)
    wide, narrow = (tiny_model("mistral", sliding_window=window) for window in (200, 6))
    assert kv_bytes(wide, settings) == 4 * 2 * 2 * 24 * 14  # the mean of 11 … 17
    assert kv_bytes(narrow, settings) == 4 * 2 * 2 * 24 * 6
    mixed = tiny_model("gemma3_text")  # two of three blocks see 6 tokens
    assert kv_bytes(mixed, settings) == 4 * 2 * 32 * (6 + 14 + 6)


def test_records_are_json_without_nan(folder):
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_what_has_its_record_is_left_alone(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}

    class Refusing(Shape):
        def load(self):
            raise AssertionError("nothing is missing")

    source = Refusing("tiny-llama", 28, CPU, torch.float32, seed=0)
    bench(folder, source).run()
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_only_what_is_missing_runs(folder, tmp_path):
    missing = bench(tmp_path)
    (tmp_path / "tiny-llama").mkdir()
    for cell in CELLS[1:]:
        missing.path(cell).write_bytes((folder / missing.path(cell).relative_to(tmp_path)).read_bytes())
    kept = missing.path(CELLS[1]).read_bytes()
    missing.run()
    assert missing.path(CELLS[0]).exists()
    assert missing.path(CELLS[1]).read_bytes() == kept


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DecodeSettings(new_tokens=1), "new-tokens"),
        (lambda: DecodeSettings(batch=9), "from 1 to 8"),
        (lambda: DecodeSettings(dense=("fast",)), "'fast' is unknown"),
        (lambda: DecodeSettings(dense=()), "no dense path"),
        (lambda: list(cells_of([1.0], ["none"])), r"in \(0, 1\)"),
        (lambda: list(cells_of([0.5], ["half"])), "'half' is unknown"),
        (lambda: list(cells_of([0.5, 0.5], ["none"])), "0.5 is named twice"),
    ],
)
def test_bad_input(make, says):
    with pytest.raises(RSparseError, match=says):
        make()
