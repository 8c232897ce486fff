"""rsparse bench decode, as a shell sees it."""

from __future__ import annotations

import json
import os

import pytest
import torch

from tests.cli.conftest import bad, good

SMALL = ["--sparsity", "0.4,0.5", "--prompt-tokens", "8", "--new-tokens", "10", "--repeats", "1", "--dense", "steps"]
SHAPE = ["bench", "decode", "--shape", "tiny-llama", *SMALL, "-o"]


def test_records_table_and_plot_and_a_second_run(tmp_path):
    out = tmp_path / "out"
    first = good(*SHAPE, out)
    assert sorted(os.listdir(out)) == ["decode.png", "settings.json", "table.md", "tiny-llama"]
    assert sorted(os.listdir(out / "tiny-llama")) == ["s0.4-none-b1-p8-n10.json", "s0.5-none-b1-p8-n10.json"]
    dense, one, two, last = first.out.splitlines()
    assert dense.startswith("tiny-llama dense, steps, reference: ")
    assert one.startswith("[1/2] tiny-llama s0.4-none: ")
    assert two.startswith("[2/2] tiny-llama s0.5-none: ")
    assert last == f"{out}: 2 records, table.md and decode.png"
    assert good(*SHAPE, out).out.splitlines() == [last]
    more = good(*SHAPE, out, "--ranks", "none,quarter", "--sparsity", "0.5")
    assert next(line for line in more.out.splitlines() if line.startswith("[")).startswith("[1/1] tiny-llama s0.5-quarter")
    bad("holds cells of repeats = 1, and this run has 2; choose another folder", *SHAPE, out, "--repeats", "2")


def test_a_dense_model_with_its_calibration(made, tmp_path):
    words = ["bench", "decode", made / "dense", "--calibration", made / "calibration", "--data", "bundled", *SMALL]
    good(*words, "-o", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "dense" / "s0.5-none-b1-p8-n10.json").read_text())
    assert record["config"]["method"] == "sparse_only"
    assert record["config"]["masks"] == "of the model's own decode"


def test_without_a_record_nothing_is_left(made, tmp_path, monkeypatch):
    def measure(*given):
        raise torch.OutOfMemoryError("tried to allocate")

    out = tmp_path / "out"
    bad("no-such-model", "bench", "decode", "./no-such-model", "--calibration", made / "calibration", *SMALL, "-o", out)
    bad("needs its --calibration DIR", "bench", "decode", made / "dense", *SMALL, "-o", out)
    monkeypatch.setattr("rsparse.benchmark.decode.bench.measure", measure)
    bad("out of memory (tried to allocate)", *SHAPE, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name a MODEL, or a --shape in its place"),
        (["m", "--shape", "tiny-llama"], "name a MODEL, or a --shape in its place"),
        (["--shape", "tiny-llama", "--calibration", "x"], "--shape has random weights and needs no --calibration"),
        (["--shape", "tiny-llama", "--sparsity", "half"], "--sparsity 'half' must be numbers with commas, as 0.4,0.5"),
        (["--shape", "tiny-llama", "--sparsity", "1.5"], "--sparsity must be in (0, 1), got 1.5"),
        (["--shape", "tiny-llama", "--ranks", "all"], "--ranks 'all' is unknown; choose from none, quarter"),
        (["--shape", "tiny-llama", "--batch", "9"], "--batch must be from 1 to 8, got 9"),
        (["--shape", "tiny-llama", "--dense", "x"], "dense path 'x' is unknown"),
        (["--shape", "llama-9"], "shape 'llama-9' is unknown"),
        (["--shape", "tiny-llama", "--prompt-tokens", "255"], "must have from 2 to 256 tokens"),
        (["--shape", "tiny-llama", "--backend", "triton"], "backend triton: it needs a CUDA GPU"),
    ],
)
def test_bad_input(words, says, tmp_path):
    bad(says, "bench", "decode", *words, "--device", "cpu", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--sparsity", "0.5"], ["--ranks", "none"]])
def test_a_checkpoint_has_its_own_levels(here, words):
    says = "a sparse checkpoint has its own levels and ranks; leave --sparsity and --ranks out"
    bad(says, "bench", "decode", "sparse", "--data", "test.txt", *words, "--device", "cpu", "-o", "out")
    assert not (here / "out").exists()
