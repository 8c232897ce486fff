"""The models of a bench: of a shape, a dense one with its calibration, a checkpoint."""

from __future__ import annotations

import pytest
import torch

from rsparse.analysis.decode_table import load_records
from rsparse.benchmark.decode.bench import Cell
from rsparse.benchmark.decode.source import Checkpoint, Real, Shape
from rsparse.errors import RSparseError
from rsparse.sparse_model import is_sparse, state, unit_members
from tests.benchmark.decode.benches import CELLS, CPU, bench, shape
from tests.support.folders import sparse_model
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import calibration_of


def test_a_real_model_and_a_checkpoint(tmp_path):
    prompts = lambda tokens: token_ids(2, tokens)  # noqa: E731
    real = Real("tiny", lambda: tiny_model("llama"), calibration_of("llama"), prompts)
    loaded = Checkpoint("tiny-sparse", lambda: sparse_model("llama"), prompts)
    bench(tmp_path, real, CELLS[1:2]).run()
    bench(tmp_path, loaded, [Cell()]).run()
    assert not is_sparse(real.model)
    records = {record["config"]["model"]: record for record in load_records(tmp_path)}
    assert set(records) == {"tiny", "tiny-sparse"}
    for record in records.values():
        assert record["config"]["masks"] == "of the model's own decode"
        assert record["metrics"]["achieved_sparsity"] == pytest.approx(0.5, abs=0.08)
    assert records["tiny-sparse"]["config"]["ranks"] is None
    assert records["tiny-sparse"]["config"]["recipe_sha"] == state(sparse_model("llama")).config()["recipe_sha"]
    with pytest.raises(RSparseError, match="3 prompts"):
        real.prompt(3, 8)


def test_the_dense_model_comes_back():
    source = shape()
    model, prompt, given = source.load(), source.prompt(1, 8), source.given(1, 8)
    before = model(torch.cat([prompt, given], 1)).logits
    with source.sparse(0.5, "none") as sparse:
        assert unit_members(sparse)
    assert not is_sparse(model)
    assert torch.equal(model(torch.cat([prompt, given], 1)).logits, before)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Shape("llama-9", 28, CPU, torch.float32, 0), "'llama-9' is unknown"),
        (lambda: Shape("tiny-llama", 257, CPU, torch.float32, 0), "from 2 to 256 tokens"),
    ],
)
def test_shapes_that_cannot_be(make, says):
    with pytest.raises(RSparseError, match=says):
        make()
