"""Methods for gated MLPs on the bench: their records, and cells that they cannot have."""

from __future__ import annotations

import pytest

from rsparse.sparse_model import is_sparse
from tests.benchmark.benches import ALL, DECODE, Bench, grid


def test_records_of_methods_without_a_recipe(files):
    bench = Bench(files, grid(files, "cats", "griffin", "dejavu", policies=[DECODE], levels=[0.3]))
    assert bench.run() == []
    for method, rule in (("cats", "gate_magnitude"), ("griffin", "prompt"), ("dejavu", "oracle")):
        for what in ("one", "tasks"):
            record = bench.record(f"{method}-s0.3-decode-{what}")
            config, metrics = record["config"], record["metrics"]
            assert (config["method"], config["rule"], config["sparsity"]) == (method, rule, 0.3)
            assert config["levels"]["neurons"] == pytest.approx(1 - config["kept_neurons"], abs=1e-4)
            assert metrics["achieved_sparsity"] == pytest.approx(0.3, abs=0.05)
            assert metrics["bytes_per_token"] < metrics["dense_bytes_per_token"]
            assert record["env"]["backend"] == "reference"
    assert not is_sparse(bench.model)


def test_cells_that_cannot_be_are_named(files):
    bench = Bench(files, grid(files, "cats", "griffin", policies=[ALL], levels=[0.3, 0.5], tasks=False))
    failed = bench.run()
    assert sum("sparsity 0.5 is past CATS's floor: it drops at most 0.395 on this model" in line for line in failed) == 2
    assert sum("token policy all has none; use decode, or last_fraction:F" in line for line in failed) == 4
    assert len(failed) == 6
    made = [name for name in bench.names() if not name.startswith("dense")]
    assert made == ["cats-s0.3-all-one.json", "cats-s0.3-all-two.json"]
