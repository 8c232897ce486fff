"""rsparse bench quality, as a shell sees it."""

from __future__ import annotations

import json

import pytest

from rsparse.compensation import FitSettings
from rsparse.methods import names
from tests.cli.conftest import bad, good, run

SIZE = ["--calibration-data", "text.txt", "--calibration-tokens", 480, "--seq-len", 24, "--max-tokens", 240]


@pytest.fixture
def task_dir(here):
    (here / "tasks").mkdir()
    rows = [{"context": f"the river {i}", "choices": ["stone", "light"], "label": i % 2} for i in range(4)]
    (here / "tasks" / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return here


def test_bench_writes_records_table_and_plot_and_resumes(task_dir):
    command = [
        "bench", "quality", "dense", "--method", "sparse_only", "--method", "rsparse:rho=0.6,fit=svd", "--levels", "0.4",
        "--data", "test.txt", "--task-dir", "tasks", "--token-policy", "all,decode", "--text-policy", "all", *SIZE, "-o", "out",
    ]  # fmt: skip
    outcome = good(*command)
    lines = outcome.out.splitlines()
    assert len(lines) == 1 + 2 + 2 * 3 + 1
    assert lines[0] == "[0/8] cells to measure"
    assert lines[-1] == "out: 8 records, table.md and pareto.png"
    assert (task_dir / "out" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    table = (task_dir / "out" / "table.md").read_text()
    assert "| rsparse-fit-svd-rho0.6 | 40% |" in table
    record = json.loads((task_dir / "out" / "dense" / "sparse_only-s0.4-decode-tasks.json").read_text())
    assert (record["config"]["preset"], record["config"]["suite"]) == ("sparse_only", "quality")
    assert sorted(record) == ["config", "env", "metrics", "run", "schema"]
    again = good(*command)
    assert again.out == lines[-1] + "\n"


def test_a_failed_cell_is_named_and_the_exit_code_says_so(here):
    outcome = run("bench", "quality", "dense", "--method", "teal", "--levels", "0.96", "--data", "test.txt", *SIZE, "-o", "out")
    assert outcome.code == 2
    assert "failed: dense teal 96% all test.txt" in outcome.out
    assert outcome.err == (
        "rsparse: error: 1 of the cells failed, the first with: dense teal 96% all test.txt: "
        "method teal: its greedy allocation ends at sparsity 0.95, got 0.96\n"
    )


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("say what to measure", []),
        ("method 'magic' is unknown", ["--data", "test.txt", "--method", "magic"]),
        ("takes no option 'rhoo'", ["--data", "test.txt", "--method", "rsparse:rhoo=1"]),
        ("--levels '0.4,x'", ["--data", "test.txt", "--levels", "0.4,x"]),
        ("--levels '1.5'", ["--data", "test.txt", "--levels", "1.5"]),
        ("must be among --levels", ["--data", "test.txt", "--levels", "0.4", "--task-levels", "0.5"]),
        ("text file none.txt does not exist", ["--data", "none.txt"]),
        ("task folder none does not exist", ["--task-dir", "none"]),
        ("token policy", ["--data", "test.txt", "--token-policy", "most"]),
        ("two methods are called teal", ["--data", "test.txt", "--method", "teal", "--method", "teal"]),
        ("two methods are called best", ["--data", "test.txt", "--method", "best", "--method", "best"]),
        ("the dense model has nothing to compensate", ["--data", "test.txt", "--method", "dense+compensate"]),
        ("compensate takes no option 'rho'", ["--data", "test.txt", "--method", "teal+compensate:rho=1"]),
        (
            "batch_tokens 23 is less than",
            ["--data", "test.txt", "--method", "teal", "--method", "teal+compensate:batch_tokens=23"],
        ),
        ("--fit-tokens must be 48 or more", ["--data", "test.txt", "--method", "best", "--fit-tokens", 47]),
    ],
)
def test_bad_input_is_found_before_the_model_loads(here, says, arguments):
    bad(says, "bench", "quality", "no-such-model/at/all", *arguments, *SIZE, "-o", "out")
    assert not (here / "out").exists()


def test_a_folder_of_other_settings_is_refused(here):
    command = ["bench", "quality", "dense", "--method", "sparse_only", "--data", "test.txt", *SIZE, "-o", "out"]
    good(*command)
    bad("out holds cells of seed = 0, and this run has 1", *command, "--seed", 1)


def test_a_folder_of_other_fit_tokens_is_refused(here):
    command = ["bench", "quality", "dense", "--method", "sparse_only", "--data", "test.txt", *SIZE, "-o", "out"]
    good(*command, "--fit-tokens", 480)
    bad("out holds cells of fit_tokens = 480, and this run has 481", *command, "--fit-tokens", 481)


def test_a_compensated_method_and_a_preset(here, monkeypatch):
    monkeypatch.setattr(FitSettings, "for_device", lambda device: FitSettings(steps=4, batch_tokens=96))
    methods = ["--method", "sparse_only+compensate:steps=2", "--method", "best"]
    good(
        "bench", "quality", "dense", *methods, "--levels", "0.4", "--data", "test.txt", *SIZE, "--fit-tokens", 480, "-o", "out"
    )
    table = (here / "out" / "table.md").read_text()
    for label, method, last in (("sparse_only-compensate-steps2", "sparse_only", 2), ("best", "joint", 4)):
        config = json.loads((here / "out" / "dense" / f"{label}-s0.4-all-test.json").read_text())["config"]
        assert (config["preset"], config["method"], config["fit_history"][-1][0]) == (label, method, last)
        assert config["fit_seconds"] > 0
        assert config["compensation"]
        assert f"| {label} | 40% |" in table


def test_the_default_is_every_method_and_no_preset(here, monkeypatch):
    grids = []

    class Stop:
        def __init__(self, grid, *arguments):
            grids.append(grid)

        def run(self):
            return []

    monkeypatch.setattr("rsparse.benchmark.quality.QualityBench", Stop)
    good("bench", "quality", "dense", "--data", "test.txt", *SIZE, "-o", "out")
    assert [method.label for method in grids[0].methods] == names()
    assert all(method.fit is None for method in grids[0].methods)
    assert "default: every method" in " ".join(good("bench", "quality", "--help").out.split())


def test_bench_without_a_suite_says_which_there_are():
    outcome = run("bench")
    assert outcome.code == 2
    assert "SUITE" in outcome.err
