"""The search for settings, with times made up: what it tries, and where it keeps what it finds."""

from __future__ import annotations

import json
import types
from dataclasses import replace

import pytest
import torch
import triton

from rsparse.ops.fused import Section, settings, tune
from rsparse.ops.fused.cuda import compiler
from rsparse.ops.fused.settings import Tiles
from rsparse.ops.fused.triton_ops import TritonOps
from tests.ops.fused import problems


def test_splits_share_the_programs_out():
    assert tune.split_for(4096, 12288, 512, 528) == 22  # 24 tiles
    assert tune.split_for(4096, 4096, 256, 528) == 33  # 16 tiles
    assert tune.split_for(4096, 128256, 512, 132) == 1
    assert tune.split_for(128, 64, 64, 528) == 2, "segments of 64 channels or more"


def test_the_best_of_the_first_and_of_what_follows_them():
    tried = []

    def time(tiles):
        tried.append(tiles)
        if tiles.block_n == 8:
            raise triton.OutOfResources(1, 2, "shared memory")
        return tiles.block_n + 1 / tiles.split

    first = [Tiles(n, 16, 1, 4, 2) for n in (8, 16, 64, 32, 128)]
    found = tune.best(first, lambda each: [Tiles(each.block_n, 16, split, 4, 2) for split in (1, 2, 4)], time)
    assert found == (Tiles(16, 16, 4, 4, 2), 16.25)
    assert len(tried) == len(set(tried)) == 5 + 3 * 2, "nothing is measured twice, and 128 is followed no further"


@pytest.mark.parametrize("shape", [(4096, 4096), (14336, 4096), (4096, 28672)])
def test_candidates(shape):
    """At most 12 to begin with, and a good one's form with other numbers of programs after that."""
    for kind in ("gather", "dense", "rows"):
        first, more = tune.candidates(kind, *shape, 132)
        assert len(first) == len(set(first)) <= 12
        follow = more(first[0])
        assert {replace(tiles, split=first[0].split) for tiles in follow} == {first[0]}
        assert len({tiles.split for tiles in [*follow, first[0]]}) > 1


def test_candidates_of_the_stream_kernel_divide_the_columns():
    first, more = tune.candidates("stream", 4096, 12288 + 32, 132)
    assert {tiles.block_n for tiles in first} == {16, 32}, "12,320 columns are no multiple of 64"
    assert len(tune.candidates("stream", 4096, 12288, 132)[0]) == len(tune.STREAMS)
    assert more(first[0]) == []
    assert Tiles(32, 128, 1, 16, 4) in first, "16 warps of 8 rows each read 128 rows of 32 columns at once"
    assert tune.candidates("paired", 4096, 12288 + 32, 132)[0] == first, "16 columns of gate and 16 of up are 32 as well"


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """A GPU without settings, on which everything takes as long as its tiles are many."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(settings, "TUNED", tmp_path / "none")
    monkeypatch.setattr(tune, "copies", lambda nbytes: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(multi_processor_count=2))
    runs = []

    def microseconds(calls, **options):
        for call in calls:
            call()
        runs.append(len(calls))
        return 100.0 - len(runs)

    monkeypatch.setattr(tune, "microseconds", microseconds)
    monkeypatch.setattr(tune, "FORMS", ((64, 16, 4, 2), (32, 16, 4, 2)))
    monkeypatch.setattr(tune, "MATRIX", ((64, 32, 4, 2),))
    monkeypatch.setattr(tune, "HEADS", tune.HEADS[:1])
    settings.known.cache_clear()
    yield runs
    settings.known.cache_clear()


def model():
    """Groups of a sparse model, one of them dense, one stored by output row, a gate|up, and a head."""
    by_row = problems.group(32, (24,), dense=True)
    by_row = replace(by_row, weight=by_row.weight.T.contiguous().T)
    groups = [problems.group(128, (40,)), problems.group(64, (32,), dense=True), problems.group(128, (40,)), by_row]
    return groups, [problems.group(128, (24, 24))], torch.zeros(48, 64)


NAMES = {f"{kind} {shape}" for kind in ("gather", "rows") for shape in ("128 40", "128 48")}
NAMES |= {"dense 64 32", "rows 64 32", "head 32 24", "head 64 48"}


def test_an_unknown_gpu_is_measured_once(pretend):
    tune.tune_once(torch.device("cpu"), *model())
    path = settings.cache_folder() / "cpu.json"
    document = json.loads(path.read_text())
    assert document["gpu"] == "cpu"
    assert document["measured"]["triton"] == triton.__version__
    assert document["measured"]["dtype"] == "float32"
    assert set(document["shapes"]) == NAMES
    for name in NAMES:
        kind, *size = name.split()
        assert settings.tiles_for("cpu", kind, *map(int, size)) == Tiles(**document["shapes"][name]["tiles"])
    times = len(pretend)
    tune.tune_once(torch.device("cpu"), *model())
    assert len(pretend) == times


def test_a_known_gpus_other_shapes_are_measured_too(pretend):
    """And nothing again: what was there stays as it is, the package's own out of this machine's file."""
    groups, gate_ups, head = model()
    tune.tune_once(torch.device("cpu"), groups, [], head)
    path = settings.cache_folder() / "cpu.json"
    before, times = json.loads(path.read_text())["shapes"], len(pretend)
    tune.tune_once(torch.device("cpu"), groups, gate_ups, head)
    after = json.loads(path.read_text())["shapes"]
    assert set(after) - set(before) == {"gather 128 48", "rows 128 48"}
    assert {name: after[name] for name in before} == before
    assert list(after) == sorted(after)
    assert len(pretend) > times


def test_what_the_package_knows_is_not_measured(pretend, tmp_path, monkeypatch):
    groups, gate_ups, head = model()
    tune.tune_once(torch.device("cpu"), groups, [], head)
    (settings.cache_folder() / "cpu.json").rename(tmp_path / "cpu.json")
    monkeypatch.setattr(settings, "TUNED", tmp_path)
    settings.known.cache_clear()
    tune.tune_once(torch.device("cpu"), groups, gate_ups, head)
    found = json.loads((settings.cache_folder() / "cpu.json").read_text())["shapes"]
    assert set(found) == {"gather 128 48", "rows 128 48"}


def test_one_row_of_a_gpu_with_the_compiled_kernel_is_tuned_for_it(monkeypatch):
    *_, head = model()
    monkeypatch.setattr(compiler, "refusal", lambda device: None)
    covered, ragged, halves, thirds = (
        problems.group(128, outs, dtype=torch.bfloat16) for outs in ((48,), (40,), (24, 24), (32, 16))
    )
    assert tune.shapes_of([covered, ragged], [], head) == {
        ("stream", 128, 48), ("rows", 128, 48), ("gather", 128, 40), ("rows", 128, 40), ("head", 64, 48),
    }  # fmt: skip
    for gate_up, kind in ((halves, "paired"), (thirds, "stream"), (ragged, "gather"), (replace(halves, dense=True), "dense")):
        shape = gate_up.weight.shape
        assert tune.shapes_of([], [gate_up], head) == {(kind, *shape), ("rows", *shape), ("head", 64, 48)}


@pytest.mark.parametrize(("kind", "act"), [("stream", None), ("paired", "silu")])
def test_what_is_timed_is_what_runs(pretend, monkeypatch, kind, act):
    """One of the two launches of an MLP block, at half of its channels."""
    seen = []

    def stream(x, group, sections, tiles, workspace, *, norm, act):
        seen.append((x.shape, tuple(group.weight.shape), sections, norm.weight.shape, act))
        assert 0.4 < float((x.abs() > group.threshold).float().mean()) < 0.6

    monkeypatch.setattr(tune, "stream", stream)
    tiles, _ = tune.tune_group(TritonOps(torch.device("cpu")), kind, 512, 64, torch.bfloat16)
    assert tiles.split == 1
    assert set(seen) == {((1, 512), (512, 64), (Section(0, 64, 0),), (512,), act)}


def test_what_cannot_be_measured_follows_the_rule_with_a_warning(pretend, monkeypatch):
    def fails(calls, **options):
        raise torch.OutOfMemoryError("CUDA out of memory\nTried to allocate")

    monkeypatch.setattr(tune, "microseconds", fails)
    with pytest.warns(UserWarning, match=r"for cpu \(CUDA out of memory\); kernels go by a rule"):
        tune.tune_once(torch.device("cpu"), *model())
    assert not (settings.cache_folder() / "cpu.json").exists()
    assert settings.tiles_for("cpu", "rows", 128, 40) == settings.default("rows", 128, 40)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.warns(UserWarning, match="kernels go by a rule"):
        tune.tune_once(torch.device("cpu"), *model())
