"""The kernel bench but for its kernels: cases and their bytes, times, rows, and what a second run does."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

from rsparse.analysis.kernel_table import load_records
from rsparse.benchmark.kernels.bench import KernelBench, Machine
from rsparse.benchmark.kernels.cases import MODELS, Case, Plan, block_of, ranks_at
from rsparse.benchmark.kernels.measure import Chain, Timing, alternate, chain
from rsparse.benchmark.kernels.outcome import Outcome
from rsparse.benchmark.kernels.record import Rows
from rsparse.errors import RSparseError
from tests.benchmark.kernel_rows import path_of, row, timings_of
from tests.cli.conftest import bad, good, run

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "sizes", "rest"),
    [
        ("llama-2-7b", [(4096, 12288), (4096, 4096), (4096, 22016), (11008, 4096)], ("silu", 1e-5, False)),
        ("llama-3-8b", [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)], ("silu", 1e-5, False)),
        ("mistral-7b", [(4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096)], ("silu", 1e-5, False)),
        ("gemma-7b", [(3072, 12288), (4096, 3072), (3072, 49152), (24576, 3072)], ("gelu_tanh", 1e-6, True)),
        ("qwen2.5-7b", [(3584, 4608), (3584, 3584), (3584, 37888), (18944, 3584)], ("silu", 1e-6, False)),
    ],
)
def test_the_blocks_of_published_shapes(model, sizes, rest):
    block = block_of(model)
    assert list(block.linears) == ["qkv", "o", "gate_up", "down"]
    assert [(each.in_features, each.out_features) for each in block.linears.values()] == sizes
    assert (block.act, block.eps, block.plus_one) == rest
    assert [name for name, each in block.linears.items() if each.biased] == (["qkv"] if model == "qwen2.5-7b" else [])
    assert model in MODELS


def test_a_budget_pays_the_rank_from_the_same_bytes():
    qkv = block_of("llama-2-7b").linears["qkv"]
    whole, low = qkv.budget(0.5, "none"), qkv.budget(0.5, "recipe")
    assert (whole.kept, whole.rank) == (2048, 0)
    assert (low.kept, low.rank) == (1947, 76)  # 76 = ⌊0.025 · 3072⌋; 2048 − 76 · 16384 / 12288 = 1946.7
    assert qkv.budget(0.0, "none").kept == 4096
    assert ranks_at(0.0, ["recipe"]) == ["none"]
    assert ranks_at(0.1, ["none", "recipe"]) == ["none", "recipe"]


def test_an_mlp_is_two_linears():
    assert [each.name for each in Case("llama-2-7b", "mlp", 0.5).linears] == ["gate_up", "down"]
    plan = Plan(models=["llama-2-7b"], units=["o", "mlp"], levels=[0.5, 0.0])
    assert [(case.unit, case.sparsity) for case in plan.cases("llama-2-7b")] == [("o", 0.5), ("o", 0), ("mlp", 0.5), ("mlp", 0)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"models": ["llama-9"]}, "--models 'llama-9' is unknown; choose from llama-2-7b, "),
        ({"units": ["head"]}, "--units 'head' is unknown; choose from qkv, o, gate_up, down, mlp"),
        ({"ranks": ["all"]}, "--ranks 'all' is unknown; choose from none, recipe"),
        ({"levels": [0.96]}, "--levels must be from 0 to 0.95, got 0.96"),
        ({"levels": [float("nan")]}, "--levels must be from 0 to 0.95, got nan"),
        ({"levels": [0.5, 0.5]}, "--levels names 0.5 twice"),
        ({"levels": [0.0, 0.0]}, "--levels names 0.0 twice"),
        ({"levels": []}, "--levels names nothing"),
        ({"batch": 9}, "--batch must be from 1 to 8, got 9"),
    ],
)
def test_plans_out_of_range(options, says):
    with pytest.raises(RSparseError, match=says):
        Plan(**options)


def test_machines_out_of_range():
    for options in ({"repeats": 0}, {"seconds": -1.0}, {"tune_seconds": float("nan")}):
        with pytest.raises(RSparseError, match=r"must be \d or more"):
            Machine(CPU, torch.float32, **options)


def test_times_are_medians_of_one_call():
    assert Timing.of([4.0, 1.0, 2.0]) == Timing(2.0, 1.5)
    calls = []
    both = {name: chain([lambda name=name: calls.append(name)] * 2, CPU) for name in "ab"}
    assert calls == ["a", "a", "b", "b"], "each ran once before it is timed"
    calls.clear()
    found = alternate(both, CPU, repeats=3)
    assert calls == ["a", "a", "b", "b"] * 3, "in turn, in every repeat"
    assert set(found) == {"a", "b"}


def test_a_chains_time_is_shared_by_its_calls(monkeypatch):
    clock = iter([0.0, 6e-6, 10e-6, 22e-6])
    monkeypatch.setattr("rsparse.benchmark.kernels.measure.time.perf_counter", lambda: next(clock))
    assert alternate({"a": Chain(lambda: None, 3)}, CPU, repeats=2)["a"].us == pytest.approx(3.0)  # 2 and 4


def test_a_row():
    found = row("qkv", 0.5, 20.0, "recipe")
    assert found["shapes"] == [[4096, 12288]]
    assert (found["kept"], found["rank"]) == ([1947.0], [76])
    # kept rows of W, the dropped channels' of V, and U
    size = 2 * (1947 * 12288 + 76 * (4096 - 1947) + 76 * 12288)
    assert found["bytes_read"] == size
    assert found["dense_bytes"] == 2 * 4096 * 12288
    assert found["bytes_per_second"] == round(size / 20e-6)
    assert found["copy_share"] == pytest.approx(size / 20e-6 / 3e12, abs=1e-4)
    assert found["achieved_sparsity"] == pytest.approx(1 - (1947 * 12288 + 76 * 16384) / (4096 * 12288), abs=1e-6)
    assert found["rank_share"] == pytest.approx(2 * 76 * (4096 - 1947 + 12288) / size, abs=1e-6)
    assert found["dense_best"] == "rows", "what is alone is no dense path"
    assert (found["speedup"], found["speedup_cublas"], found["speedup_masked"]) == (1.6, 1.8, 1.25)
    assert found["speedup_by_bytes"] == pytest.approx(4096 * 12288 * 2 / size, abs=1e-4)
    assert found["cublas_alone"] == {"us": 30.0, "spread": 0.01}
    assert found["relative_error"] == 0.003


def test_an_mlps_row_counts_both_of_its_linears():
    found = row("mlp", 0.5, 50.0)
    assert found["dense_bytes"] == 2 * (4096 * 22016 + 11008 * 4096)
    assert found["bytes_read"] == found["dense_bytes"] / 2
    assert found["achieved_sparsity"] == 0.5


def test_biases_are_read():
    found = row("qkv", 0.5, 20.0, model="qwen2.5-7b")
    assert found["bytes_read"] == 2 * 1792 * 4608 + 4 * 4608
    assert found["dense_bytes"] == 2 * 3584 * 4608 + 4 * 4608


def test_without_some_paths():
    found = row("o", 0.5, 10.0, "none", "cublas", "masked", "cublas_alone")
    assert (found["speedup_cublas"], found["speedup_masked"], found["masked"], found["cublas_alone"]) == (None,) * 4
    with pytest.raises(RSparseError, match="no dense path ran"):
        row("o", 0.5, 10.0, "none", "cublas", "rows", "channels")


class _Ran:
    """Stands in for the kernels: a case takes 10 µs, or fails where `broken` says so."""

    def __init__(self, monkeypatch):
        self.cases, self.broken, self.tuned = [], {}, []
        execute = types.SimpleNamespace(run_case=self.run_case)
        monkeypatch.setitem(sys.modules, "rsparse.benchmark.kernels.execute", execute)
        monkeypatch.setitem(sys.modules, "rsparse.benchmark.kernels.tiles", types.SimpleNamespace(Tuner=self.tuner))
        monkeypatch.setattr("importlib.metadata.version", lambda name: "3")
        monkeypatch.setattr("rsparse.records.commit", lambda: "abc")

    def run_case(self, case, ranks, device, dtype, seed, repeats):
        self.cases.append((case.model, case.unit, case.sparsity, tuple(ranks)))
        if isinstance(error := self.broken.get(case.unit), Exception):
            raise error
        outcome = Outcome(failed=dict(error or {}))
        for name in ranks:
            outcome.paths[name] = path_of(case, name)
            outcome.timings |= timings_of(10.0, name)
        for name in outcome.failed:
            outcome.timings.pop(name)
        return outcome

    def tuner(self, device, dtype, seconds, say):
        return types.SimpleNamespace(
            use=lambda tiles: self.tuned.append(dict(tiles)), run=lambda *a: None, of=lambda linears: {"x 1 2": {"a": 1}}
        )


@pytest.fixture
def ran(monkeypatch):
    return _Ran(monkeypatch)


def bench(folder, said=None, overwrite=False, seconds=None, **options):
    plan = Plan(**{"models": ["llama-2-7b"], "units": ["o", "down"], "levels": [0.0, 0.5], **options})
    machine = Machine(CPU, torch.bfloat16, seconds=seconds)
    return KernelBench(plan, machine, folder, [].append if said is None else said.append, overwrite=overwrite)


def test_only_what_is_missing_runs(ran, tmp_path):
    said = []
    assert bench(tmp_path, said, ranks=["none"], levels=[0.5]).run() == []
    assert ran.cases == [("llama-2-7b", "o", 0.5, ("none",)), ("llama-2-7b", "down", 0.5, ("none",))]
    assert said[0].startswith("[1/2] llama-2-7b o 50%: ranks none 10.0 µs, 3.20× best dense, ")
    before = json.loads((tmp_path / "llama-2-7b-bfloat16.json").read_text())
    assert before["config"]["tiles"] == {"x 1 2": {"a": 1}}
    assert "others for each copy" in before["config"]["masks"]
    ran.cases.clear()
    bench(tmp_path).run()
    assert [case[1:] for case in ran.cases] == [
        ("o", 0.0, ("none",)), ("o", 0.5, ("recipe",)), ("down", 0.0, ("none",)), ("down", 0.5, ("recipe",)),
    ]  # fmt: skip
    assert ran.tuned == [{}, before["config"]["tiles"]]
    rows = json.loads((tmp_path / "llama-2-7b-bfloat16.json").read_text())["metrics"]["rows"]
    assert len(rows) == 6
    assert all(row in rows for row in before["metrics"]["rows"])
    ran.cases.clear()
    bench(tmp_path).run()
    assert ran.cases == []
    bench(tmp_path, overwrite=True).run()
    assert len(ran.cases) == 4


def test_each_case_is_written_at_once(ran, tmp_path):
    def run_case(case, *rest):
        if case.unit == "down":
            raise KeyboardInterrupt
        return _Ran.run_case(ran, case, *rest)

    sys.modules["rsparse.benchmark.kernels.execute"].run_case = run_case
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path).run()
    assert {row["unit"] for row in load_records(tmp_path)[0]["metrics"]["rows"]} == {"o"}


def test_a_lost_device_keeps_no_row_from_its_record(ran, tmp_path, monkeypatch):
    def empty_cache():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *a: "H100")
    monkeypatch.setattr("torch.cuda.empty_cache", empty_cache)
    ran.broken = {"down": RuntimeError("CUDA error")}
    failed = bench(tmp_path, levels=[0.5], ranks=["none"]).run()
    assert failed == ["llama-2-7b down 50%, none: RuntimeError: CUDA error"]
    rows = json.loads((tmp_path / "llama-2-7b-bfloat16.json").read_text())["metrics"]["rows"]
    assert [(row["unit"], "failed" in row) for row in rows] == [("down", True), ("o", False)]


def test_what_fails_is_recorded_named_and_tried_again(ran, tmp_path):
    said = []
    ran.broken = {"o": torch.OutOfMemoryError("CUDA out of memory.\n Tried"), "down": {"recipe": "ValueError: bad"}}
    failed = bench(tmp_path, said, levels=[0.5]).run()
    assert failed == [
        "llama-2-7b o 50%, none: OutOfMemoryError: CUDA out of memory. Tried",
        "llama-2-7b o 50%, recipe: OutOfMemoryError: CUDA out of memory. Tried",
        "llama-2-7b down 50%, recipe: ValueError: bad",
    ]
    assert f"failed: {failed[0]}" in said
    rows = json.loads((tmp_path / "llama-2-7b-bfloat16.json").read_text())["metrics"]["rows"]
    assert {(row["unit"], row["ranks"]): row.get("failed") for row in rows} == {
        ("o", "none"): "OutOfMemoryError: CUDA out of memory. Tried",
        ("o", "recipe"): "OutOfMemoryError: CUDA out of memory. Tried",
        ("down", "none"): None,
        ("down", "recipe"): "ValueError: bad",
    }
    ran.broken = {}
    ran.cases.clear()
    assert bench(tmp_path, levels=[0.5]).run() == []
    assert [case[1:] for case in ran.cases] == [("o", 0.5, ("none", "recipe")), ("down", 0.5, ("recipe",))]
    assert "failed" not in (tmp_path / "llama-2-7b-bfloat16.json").read_text()


def test_no_case_begins_after_its_time(ran, tmp_path):
    said = []
    bench(tmp_path, said, seconds=0.0).run()
    assert ran.cases == []
    assert said[-1].endswith("4 cases are left, run again to go on")


def test_the_command(ran, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("rsparse.analysis.kernel_plot.plot", lambda records, path: path.write_text("drawn"))
    words = [
        "bench",
        "kernels",
        "--models",
        "llama-2-7b",
        "--units",
        "o",
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
        "-o",
        tmp_path,
    ]
    first = good(*words, "--levels", "0.5", "--ranks", "none", "--json", tmp_path / "all" / "r.json")
    line, last = first.out.splitlines()
    assert line.startswith("[1/1] llama-2-7b o 50%: ranks none 10.0 µs")
    assert last == f"{tmp_path}: 1 records, table.md and kernels.png"
    assert "llama-2-7b on" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "kernels.png").read_text() == "drawn"
    made = json.loads((tmp_path / "all" / "r.json").read_text())
    assert (made["config"]["suite"], made["config"]["models"]) == ("kernels", ["llama-2-7b"])
    assert [(row["model"], row["us"]) for row in made["metrics"]["rows"]] == [("llama-2-7b", 10.0)]
    assert good(*words, "--levels", "0.5", "--ranks", "none").out.splitlines() == [last]
    bad("holds cells of repeats = 7, and this run has 3", *words, "--repeats", "3")
    assert "run again to go on" in good(*words[:-1], tmp_path / "none", "--seconds", "0").out
    assert not (tmp_path / "none").exists()
    ran.broken = {"o": ValueError("no such kernel")}
    outcome = run(*words, "--levels", "0.5")
    assert outcome.code == 2
    assert outcome.err == "rsparse: error: 1 failed, the last one llama-2-7b o 50%, recipe: ValueError: no such kernel\n"


def test_a_file_that_is_no_record(tmp_path):
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(RSparseError, match="not a record of kernels"):
        Rows(tmp_path / "m.json", {})
