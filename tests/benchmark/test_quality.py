"""A grid's cells, their records against direct evaluation, and what a second run does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsparse.benchmark import workbench
from rsparse.benchmark.grid import Cell
from rsparse.calibration import TextSource, calibrate
from rsparse.calibration.windows import make_windows
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from rsparse.evaluation.perplexity import evaluate
from rsparse.methods import MethodSpec, make_recipe
from rsparse.sparse_model import begin, is_sparse
from rsparse.token_policy import TokenPolicy
from tests.benchmark.benches import ALL, DECODE, SEQ_LEN, Bench, grid, settings
from tests.support.models import text_file, tiny_model, tiny_tokenizer


def test_cells_dense_first_and_one_sparse_model_at_a_time(files):
    wanted = grid(files, "sparse_only", "dense", "teal", policies=[ALL, DECODE], levels=[0.5, 0.4], task_levels=[0.4])
    cells = list(wanted.cells("tiny"))
    assert [cell.method.name for cell in cells[:5]] == ["dense"] * 5  # 2 texts × 2 policies, the tasks once
    assert sum(cell.method.name == "dense" for cell in cells) == 5
    assert cells[4].text is None
    order = [(cell.method.name, cell.sparsity) for cell in cells[5:]]
    assert list(dict.fromkeys(order)) == [("sparse_only", 0.5), ("teal", 0.5), ("sparse_only", 0.4), ("teal", 0.4)]
    assert order == sorted(order, key=list(dict.fromkeys(order)).index)
    assert {cell.sparsity for cell in cells if cell.text is None} == {0.0, 0.4}
    paths = [cell.path(files) for cell in cells]
    assert len(set(paths)) == len(paths)


def test_texts_may_have_policies_of_their_own(files):
    cells = list(grid(files, policies=[ALL, DECODE], text_policies=[ALL]).cells("tiny"))
    sparse = [cell for cell in cells if cell.method.name == "sparse_only"]
    assert {cell.token_policy for cell in sparse if cell.text} == {ALL}
    assert {cell.token_policy for cell in sparse if cell.text is None} == {ALL, DECODE}


def test_names_of_records_suit_any_file_system():
    policy = TokenPolicy.parse("last_fraction:0.5", 1)
    cell = Cell("owner/model.gguf", MethodSpec.parse("rsparse:rho=0.9"), 0.5, policy, "bundled:test")
    assert cell.path(Path("out")) == Path("out/owner--model/rsparse-rho0.9-s0.5-last_fraction0.5-bundled-test.json")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": ["x.gguf", "x"]}, "two models"),
        ({"texts": ["a/x.txt", "b/x.jsonl"]}, "two texts"),
    ],
)
def test_two_of_one_name_are_refused(tmp_path, changes, says):
    with pytest.raises(RSparseError, match=f"{says} .*would have one name"):
        grid(tmp_path, **changes)


def test_a_method_given_twice_is_refused(tmp_path):
    with pytest.raises(RSparseError, match="two methods are called teal"):
        grid(tmp_path, "teal", "teal")


def test_records_are_what_evaluation_says(files):
    bench = Bench(files, grid(files, "rsparse:rho=0.6,fit=svd", policies=[ALL, DECODE], texts=[str(files / "one.txt")]))
    assert bench.run() == []
    assert not is_sparse(bench.model)
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    calibration = calibrate(model, tokenizer, str(files / "calibration.txt"), tokens=480, seq_len=SEQ_LEN, rows=480)
    recipe = make_recipe(model, "rsparse", 0.4, rho=0.6, fit="svd")
    sparsify(model, recipe, calibration, settle_tokens=480)
    windows = make_windows(TextSource(str(files / "one.txt")).documents(), tokenizer, SEQ_LEN)
    for policy in (ALL, DECODE):
        found = bench.record(f"rsparse-fit-svd-rho0.6-s0.4-{policy}-one")
        expected = evaluate(model, windows, policy)
        for name in ("perplexity", "kl_to_dense", "dense_perplexity", "achieved_sparsity", "sparse_row_share"):
            assert found["metrics"][name] == pytest.approx(getattr(expected, name), rel=1e-5), name
        assert found["metrics"]["window_nll"] == pytest.approx(expected.window_nll, abs=2e-5)
        assert found["metrics"]["eval_tokens_per_second"] > 0
        config = found["config"]
        assert (config["suite"], config["preset"], config["method"]) == ("quality", "rsparse-fit-svd-rho0.6", "rsparse")
        assert (config["data"], config["token_policy"], config["model"]) == ("one.txt", str(policy), "tiny")
        assert set(config["levels"].values()) == {0.4}
        assert found["env"]["backend"] == "reference"
    dense = bench.record("dense-all-one")
    assert dense["metrics"]["perplexity"] == pytest.approx(evaluate(tiny_model("llama"), windows, ALL).perplexity, rel=1e-5)
    assert dense["config"]["method"] == "dense"
    assert "kl_to_dense" not in dense["metrics"]


def test_task_records_hold_rows_bytes_and_achieved_sparsity(files):
    bench = Bench(files, grid(files, policies=[ALL, DECODE]))
    assert bench.run() == []
    dense, sparse = bench.record("dense-dense-tasks"), bench.record("sparse_only-s0.4-all-tasks")
    for record in (dense, sparse):
        entry = record["metrics"]["tasks"]["words"]
        assert entry["n"] == len(entry["rows"]["acc"]) == 6
        assert entry["chance"] == pytest.approx(1 / 3, abs=1e-6)
    assert dense["metrics"]["bytes_per_token"] == dense["metrics"]["dense_bytes_per_token"]
    assert sparse["metrics"]["bytes_per_token"] < sparse["metrics"]["dense_bytes_per_token"]
    assert sparse["metrics"]["achieved_sparsity"] == pytest.approx(0.4, abs=0.1)
    decode = bench.record("sparse_only-s0.4-decode-tasks")["metrics"]["sparse_row_share"]
    assert 0 < decode < sparse["metrics"]["sparse_row_share"] < 1


def test_a_second_run_does_only_what_is_missing(files):
    wanted = grid(files, "sparse_only", "low_rank_only")
    first = Bench(files, wanted)
    first.run()
    assert len(first.names()) == 3 + 2 * 3
    before = {name: (first.out / "tiny" / name).read_text() for name in first.names()}
    (first.out / "tiny" / "low_rank_only-s0.4-all-two.json").unlink()
    second = Bench(files, wanted)
    second.run()
    before_it, line = second.said
    assert before_it == "[0/1] cells to measure"
    assert line.startswith("[1/1] tiny low_rank_only 40% all two.txt: perplexity")
    after = {name: (first.out / "tiny" / name).read_text() for name in first.names()}
    assert [name for name in before if before[name] != after[name]] == ["low_rank_only-s0.4-all-two.json"]
    gone, new = (json.loads(each["low_rank_only-s0.4-all-two.json"])["metrics"] for each in (before, after))
    assert gone["perplexity"] == new["perplexity"]
    third = Bench(files, wanted)
    assert third.run() == []
    assert third.loads == []


def test_other_settings_are_refused_before_a_model_loads(files):
    Bench(files, grid(files)).run()
    other = Bench(files, grid(files), seed=3)
    with pytest.raises(RSparseError, match="holds cells of seed = 0, and this run has 3"):
        other.run()
    assert other.loads == []


def test_a_method_that_fails_does_not_stop_the_others(files):
    # at 0.96 TEAL's greedy has no levels; sparse-only does
    bench = Bench(files, grid(files, "teal", "sparse_only", levels=[0.96]))
    failed = bench.run()
    assert len(failed) == 3
    assert all("tiny teal 96%" in line and "ends at sparsity 0.95" in line for line in failed)
    assert "sparse_only-s0.96-all-one.json" in bench.names()
    assert not any(name.startswith("teal") for name in bench.names())
    assert not is_sparse(bench.model)


def test_a_model_that_does_not_load_does_not_stop_the_others(files):
    bench = Bench(files, grid(files, models=["broken", "tiny"]))
    good = bench.bench.load

    def load(name):
        if name == "broken":
            raise RSparseError("cannot load model broken: no such thing")
        return good(name)

    bench.bench.load = load
    failed = bench.run()
    assert failed
    assert all("broken" in line for line in failed)
    assert "sparse_only-s0.4-all-one.json" in bench.names()


def test_dense_states_are_made_once_and_dropped_where_there_is_no_room(files, monkeypatch):
    calls = []
    real = workbench.dense_states
    monkeypatch.setattr(workbench, "dense_states", lambda model, windows: calls.append(len(windows)) or real(model, windows))
    first = Bench(files, grid(files, "sparse_only", "low_rank_only", tasks=False))
    first.run()
    assert len(calls) == 2  # a text each, not a method each
    kept = first.record("low_rank_only-s0.4-all-two")["metrics"]["kl_to_dense"]
    monkeypatch.setattr(workbench, "DENSE_STATE_BYTES", 1)
    again = Bench(files, grid(files, "sparse_only", "low_rank_only", tasks=False))
    (first.out / "tiny" / "low_rank_only-s0.4-all-two.json").unlink()
    again.run()
    assert len(calls) == 2
    assert again.record("low_rank_only-s0.4-all-two")["metrics"]["kl_to_dense"] == pytest.approx(kept, rel=1e-5)


def test_levels_by_kind():
    model = tiny_model("llama")
    recipe = make_recipe(model, "nncf", 0.3)
    levels = begin(model, recipe).levels()
    assert set(levels) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert levels["q_proj"] == 0
    assert levels["down_proj"] > levels["up_proj"] > 0


def lines_of(files: Path) -> str:
    return (files / "out" / "settings.json").read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sink_tokens": 2}, "sink_tokens = 1, and this run has 2"),
        ({"dtype": "bfloat16"}, "dtype = float32"),
        ({"device": "cuda"}, "device = cpu"),
        ({"chat_template": True}, "chat_template = False"),
        ({"settle_tokens": 100}, "settle_tokens = None"),
        ({"tasks": {"words": "other"}}, "task words"),
    ],
)
def test_settings_that_make_other_figures_are_refused(files, changes, says):
    Bench(files, grid(files), tasks={"words": "abc"}).run()
    before = lines_of(files)
    with pytest.raises(RSparseError, match=says):
        Bench(files, grid(files), **({"tasks": {"words": "abc"}} | changes)).run()
    assert lines_of(files) == before


def test_a_text_of_the_same_name_with_other_words_is_refused(files):
    Bench(files, grid(files)).run()
    text_file(files, 130, seed=9).rename(files / "one.txt")
    with pytest.raises(RSparseError, match="holds cells of text one ="):
        Bench(files, grid(files)).run()


def test_another_model_of_the_same_name_is_refused(files):
    for folder, seed in (("a", 0), ("b", 1)):
        (files / folder / "m").mkdir(parents=True)
        (files / folder / "m" / "config.json").write_text(json.dumps({"seed": seed}))
    Bench(files, grid(files, models=[str(files / "a" / "m")])).run()
    with pytest.raises(RSparseError, match="holds cells of model m ="):
        Bench(files, grid(files, models=[str(files / "b" / "m")])).run()


def test_more_models_texts_and_methods_may_join(files):
    Bench(files, grid(files, texts=[str(files / "one.txt")])).run()
    more = Bench(files, grid(files, "sparse_only", "low_rank_only", models=["tiny", "second"]))
    assert more.run() == []
    kept = json.loads(lines_of(files))
    assert set(kept["models"]) == {"tiny", "second"}
    assert set(kept["texts"]) == {"one", "two", "calibration"}


def test_a_text_that_is_too_short_fails_alone_and_by_its_name(files):
    (files / "short.txt").write_text("a")
    texts = [str(files / "short.txt"), str(files / "one.txt")]
    bench = Bench(files, grid(files, texts=texts))
    failed = bench.run()
    assert len(failed) == 2
    assert all("short.txt: " in line and "has only" in line for line in failed)
    assert "sparse_only-s0.4-all-one.json" in bench.names()
    assert "sparse_only-s0.4-all-tasks.json" in bench.names()


def test_what_nobody_foresaw_fails_one_cell(files, monkeypatch):
    real = workbench.evaluate

    def evaluate(model, *arguments, **options):
        if is_sparse(model):
            raise RuntimeError("out of memory\nwith many lines")
        return real(model, *arguments, **options)

    monkeypatch.setattr(workbench, "evaluate", evaluate)
    bench = Bench(files, grid(files))
    failed = bench.run()
    assert len(failed) == 2
    assert failed[0].endswith("RuntimeError: out of memory with many lines")
    assert "sparse_only-s0.4-all-tasks.json" in bench.names()
    assert not is_sparse(bench.model)


def test_ctrl_c_is_not_a_failed_cell(files, monkeypatch):
    def evaluate(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(workbench, "evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        Bench(files, grid(files)).run()
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    "changes", [{"limit": 0}, {"seq_len": 1}, {"num_fewshot": -1}, {"settle_tokens": -5}, {"max_tokens": 3}]
)
def test_settings_out_of_range(files, changes):
    with pytest.raises(RSparseError, match="must be"):
        settings(files, **changes)


def test_sinks_reach_calibration_and_rows_are_counted_once(files):
    policy = TokenPolicy("all", sink_tokens=3)
    bench = Bench(files, grid(files, policies=[policy]), sink_tokens=3)
    assert bench.run() == []
    share = bench.record("sparse_only-s0.4-all-one")["metrics"]["sparse_row_share"]
    assert share == pytest.approx(1 - 3 / SEQ_LEN)
    tasks = bench.record("sparse_only-s0.4-all-tasks")["metrics"]
    tokenizer = tiny_tokenizer()
    inputs = set()
    for i in range(6):
        context = tokenizer(f"the river {i}")["input_ids"]
        for choice in ("stone", "light and bread", "her"):
            inputs.add(tuple(tokenizer(f"the river {i} {choice}")["input_ids"][:-1]))
        assert len(context) > 3
    expected = sum(len(ids) - 3 for ids in inputs) / sum(map(len, inputs))
    assert tasks["sparse_row_share"] == pytest.approx(expected, abs=1e-6)
