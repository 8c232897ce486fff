"""The kernel bench's cases on a CPU. Run by test_kernel_cases.py: TRITON_INTERPRET counts where Triton is imported."""

from __future__ import annotations

import functools
import types

import pytest
import torch

from rsparse.benchmark.decode.paths import Cublas
from rsparse.benchmark.kernels import cases, paths, problem, tiles
from rsparse.benchmark.kernels.cases import Case, Linears, block_of
from rsparse.benchmark.kernels.execute import run_case
from rsparse.benchmark.kernels.problem import Problem, between, counts
from rsparse.benchmark.shapes import SHAPES
from rsparse.ops.fused import fused_ops, settings
from rsparse.ops.fused.cuda import compiler
from rsparse.ops.fused.reference import act_mul, keep, rms_norm
from rsparse.ops.fused.settings import Tiles
from rsparse.ops.fused.triton_ops import TritonOps

CPU = torch.device("cpu")
SMALL = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Tiny shapes, with factors of a few ranks."""
    for kind in ("qwen2", "gemma"):
        monkeypatch.setitem(SHAPES, f"tiny-{kind}", {**SHAPES["tiny-llama"], **SMALL, "model_type": kind, "rms_norm_eps": 1e-6})
    monkeypatch.setattr(cases, "RANK_RHO", 0.6)
    monkeypatch.setattr(paths, "tiles_for", lambda *a: Tiles(64, 64, 1, 4, 2))
    monkeypatch.setattr("rsparse.ops.fused.triton_ops.tiles_for", lambda *a: Tiles(64, 64, 1, 4, 2))
    monkeypatch.setattr("rsparse.ops.fused.rows.tiles_for", lambda *a: Tiles(64, 64, 1, 4, 2))
    yield
    settings.known.cache_clear()


def ran(model, unit, sparsity=0.5, ranks=("none", "recipe"), batch=1):
    case = Case(model, unit, sparsity, batch)
    return case, run_case(case, list(ranks), CPU, torch.float32, seed=0, repeats=1)


@pytest.mark.parametrize(("model", "unit"), [("tiny-qwen2", "qkv"), ("tiny-llama", "o"), ("tiny-gemma", "mlp")])
def test_every_path_runs_and_is_right(model, unit):
    case, outcome = ran(model, unit)
    assert outcome.failed == {}
    assert set(outcome.timings) == {"cublas", "rows", "channels", "cublas_alone", "masked", "none", "recipe"}
    for ranks in ("none", "recipe"):
        found = outcome.paths[ranks]
        budgets = [each.budget(0.5, ranks) for each in case.linears]
        assert found.ranks == tuple(budget.rank for budget in budgets)
        assert min(found.ranks) > 0 or ranks == "none"
        assert found.kept == tuple(budget.kept for budget in budgets)
        assert found.ops == type(fused_ops("triton", CPU)).__name__
        assert found.reads == tuple((b.kept, each.in_features - b.kept) for b, each in zip(budgets, case.linears, strict=True))
    assert all(path.error < 1e-5 for name, path in outcome.paths.items() if name != "cublas_alone")


def test_nothing_dropped():
    _, outcome = ran("tiny-llama", "down", 0.0, ["none"])
    assert outcome.failed == {}
    assert outcome.paths["none"].kept == (80,)
    assert "masked" not in outcome.paths


def test_rows_together_read_every_weight():
    _, outcome = ran("tiny-llama", "o", batch=3)
    assert outcome.failed == {}
    assert "masked" not in outcome.paths
    found = outcome.paths["none"]
    assert found.kept == (24,), "each row its own count"
    assert found.reads[0][0] == 48
    assert 24 < found.reads[0][1] < 48, "rows of V: what any of the rows drops"


def test_each_copy_has_weights_and_masks_of_its_own():
    made = Problem(Case("tiny-llama", "o", 0.5), CPU, torch.float32, seed=0)
    seen = []
    original = made._draw

    def draw(ops, groups, budgets, x):
        found = original(ops, groups, budgets, x)
        seen.append((groups[0].weight, keep(x, groups[0], 0)))
        return found

    made._draw = draw
    made.sparse("none")
    (first, m), (second, n) = seen
    assert not torch.equal(first, second)
    assert int(m.sum()) == int(n.sum()) == 24
    assert not torch.equal(m, n)


def test_a_threshold_between_two_scores():
    score = torch.tensor([0.1, 0.9, 0.5, 0.3])
    assert between(score, 2).item() == pytest.approx(0.4)
    assert between(score, 4).item() == float("-inf")
    m = torch.tensor([[True, True, False, False], [True, False, False, False]])
    assert counts(m).tolist() == [1.5, 2, 3]


def test_what_is_wrong_is_no_result(monkeypatch):
    right = TritonOps.project_with
    monkeypatch.setattr(
        TritonOps, "project_with", lambda self, *a, **k: right(self, *a, **k) * (1.05 if type(self) is TritonOps else 1)
    )
    _, outcome = ran("tiny-llama", "o")
    assert set(outcome.failed) == {"channels", "none", "recipe"}
    assert "from the reference, relative RMS" in outcome.failed["none"]
    assert set(outcome.timings) == {"cublas", "rows", "cublas_alone", "masked"}


def test_alone_is_the_product_alone():
    group = paths.dense_group(torch.randn(48, 40), None)
    x = torch.randn(1, 96)
    assert torch.equal(paths.Alone().act_project(x, "silu", group), x[:, :48] @ group.weight)
    assert isinstance(paths.dense_ops("cublas", CPU), Cublas)


def test_factors_come_with_a_scale():
    linears, weight, generator = block_of("tiny-llama").linears["qkv"], torch.randn(48, 96), torch.Generator()
    plain, low = (paths.sparse_group(linears, weight, None, rank, generator) for rank in (0, 3))
    assert plain.channel_scale is None
    assert torch.allclose(low.channel_scale[0], weight.norm(dim=1))
    assert [len(group.sections) for group in (plain, low)] == [1, 1], "one mask, and factors of the stacked weight"
    assert (plain.rank, low.rank) == (0, 8)
    assert torch.equal(plain.weight, weight)


def test_a_units_call_is_the_decode_steps():
    block, add = block_of("tiny-llama"), torch.ones(1, 48)
    made = Problem(Case("tiny-llama", "mlp", 0.5), CPU, torch.float32, seed=0)
    gate_up, down = made._by_channel[0]
    x = made._input(48)
    expected = add + act_mul(rms_norm(x, made.norm) @ gate_up.weight, block.act) @ down.weight
    found = paths.caller(problem.ReferenceOps(), "mlp", block, made.norm, (gate_up, down), x, add)()
    assert torch.allclose(found, expected, atol=1e-5)
    alone = torch.randn(1, down.in_features)
    found = paths.caller(problem.ReferenceOps(), "down", block, made.norm, (down,), alone, add)()
    assert torch.allclose(found, add + alone @ down.weight, atol=1e-5), "the activation is no part of it"


def test_copies_reach_beyond_the_caches(monkeypatch):
    """Not what there is of weights, what is read of them."""
    monkeypatch.setattr(Problem, "_normal", lambda self, *size, std=1.0: torch.empty(0))
    monkeypatch.setattr(problem.torch, "Generator", lambda device: types.SimpleNamespace(manual_seed=lambda seed: None))
    monkeypatch.setattr(problem.torch, "ones", lambda *a, **k: torch.empty(0))
    found = {s: Problem(Case("llama-2-7b", "o", s), types.SimpleNamespace(type="cuda"), torch.bfloat16, 0) for s in (0.0, 0.9)}
    assert {s: (made.copies, made.dense_copies) for s, made in found.items()} == {0.0: (6, 6), 0.9: (52, 6)}


def test_settings_that_are_missing():
    linears = block_of("tiny-llama").linears
    settings.known("cpu")["dense 48 48"] = Tiles(1, 1, 1, 1, 1)
    found = tiles.missing(CPU, torch.bfloat16, ["qkv", "o"], linears, 1)
    assert found == [("head", 48, 48), ("head", 48, 96), ("dense", 48, 96)] + [
        (kind, 48, out) for kind in ("masked", "gather") for out in (48, 96)
    ]
    assert {kind for kind, *_ in tiles.missing(CPU, torch.bfloat16, ["qkv", "o"], linears, 2)} == {"head", "dense", "rows"}


def test_ours_are_of_the_kernel_that_runs_a_shape(monkeypatch):
    """As an H100 has it: one launch where loads are aligned, else select and gather."""
    monkeypatch.setattr(compiler, "refusal", lambda device: None)
    outs = {"o": (48,), "qkv": (48, 20, 20), "gate_up": (64, 64), "down": (48,)}
    linears = {name: Linears(name, 48, each, False) for name, each in outs.items()}

    def kinds(dtype, batch, units=("o", "qkv")):
        others = ("head", "dense", "masked")
        return [each for each in tiles.missing(CPU, dtype, units, linears, batch) if each[0] not in others]

    assert kinds(torch.bfloat16, 1) == [("stream", 48, 48), ("gather", 48, 88)]  # 88 is no multiple of a tile's 16
    assert kinds(torch.float32, 1) == [("gather", 48, 48), ("gather", 48, 88)]
    assert kinds(torch.bfloat16, 2) == [("rows", 48, 48), ("rows", 48, 88)]
    assert kinds(torch.bfloat16, 1, ["mlp"]) == [("stream", 48, 48), ("paired", 48, 128)]
    assert kinds(torch.bfloat16, 1, ["gate_up", "mlp"])[1:] == [("paired", 48, 128), ("stream", 48, 128)]


def test_tuning_ends_with_its_time(monkeypatch):
    clock, said = iter(range(100)), []
    monkeypatch.setattr(tiles, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    tuner = tiles.Tuner(CPU, torch.float32, 4, said.append)
    monkeypatch.setattr(tiles, "missing", functools.partial(lambda real, device, *rest: real(CPU, *rest), tiles.missing))
    tuner.device = types.SimpleNamespace(type="cuda")
    tried = []

    def tune(kind, columns, out):
        tried.append((kind, columns, out))
        if len(tried) == 1:
            raise RuntimeError("no memory")
        return Tiles(8, 8, 1, 4, 2), 1.0

    tuner._tune = tune
    linears = block_of("tiny-llama").linears
    tuner.run(["o", "qkv"], linears, 1)
    assert tried == [("head", 48, 48), ("head", 48, 96), ("dense", 48, 48)]
    assert "RuntimeError, the nearest shape's are taken" in said[0]
    assert set(tuner.found) == {"head 48 96", "dense 48 48"}
    assert settings.known("cpu")["dense 48 48"] == Tiles(8, 8, 1, 4, 2)
    assert tuner.of({"o": linears["o"]}) == {"dense 48 48": tuner.found["dense 48 48"]}
    settings.known.cache_clear()
    again = tiles.Tuner(CPU, torch.float32, 0, said.append)
    settings.known("cpu")["head 48 96"] = Tiles(1, 1, 1, 1, 1)
    again.use({**tuner.found, "old": {"strange": 1}})
    assert settings.known("cpu")["head 48 96"] == Tiles(1, 1, 1, 1, 1), "the package's come first"
    assert settings.known("cpu")["dense 48 48"] == Tiles(8, 8, 1, 4, 2)
    assert set(again.found) == {"dense 48 48"}
