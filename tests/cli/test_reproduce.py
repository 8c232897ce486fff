"""rsparse reproduce, as a shell sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import bad, good, run
from tests.support.models import words

SIZE = [
    "--calibration-data",
    "text.txt",
    "--calibration-tokens",
    480,
    "--seq-len",
    24,
    "--data",
    "test.txt",
    "--max-tokens",
    96,
]
QUICK = [*SIZE, "--searched", "population=2,generations=1,samples=2", "-o", "out"]
ONE = ["--method", "sparse_only"]
# A pause behind each record: cells of this size are over before a busy machine has looked for the first.
SLOWLY = """
import sys, time
from rsparse import records
from rsparse.cli import main

write = records.write
records.write = lambda *record: (write(*record), time.sleep(0.5))
sys.exit(main())
"""


@pytest.fixture
def folder(here):
    (here / "tasks").mkdir()
    rows = [{"context": f"the river {i}", "choices": ["stone", "light"], "label": i % 2} for i in range(4)]
    (here / "tasks" / "piqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return here


def test_one_table_is_shown_whole_and_resumes(folder):
    command = ["reproduce", "oracle", "dense", "--task-dir", "tasks", "--levels", "0.5", *QUICK]
    outcome = good(*command)
    text = (folder / "out" / "dense" / "tables" / "oracle.md").read_text()
    assert outcome.out.endswith(text + "\n")
    assert "[1/7] dense dense dense tasks: " in outcome.out
    assert "published: Llama-2-7B" in text
    record = json.loads((folder / "out" / "dense" / "tables" / "oracle.json").read_text())
    assert sorted(record) == ["config", "env", "metrics", "run", "schema"]
    config = record["config"]
    assert (config["suite"], config["table"], config["model"]) == ("reproduce", "oracle", "dense")
    assert config["token_policy"] == ["last_fraction:0.1", "all"]
    assert config["weights_sha"]
    assert good(*command).out == text + "\n"


def test_cells_of_a_bench_are_taken_as_they_are(folder):
    common = ["--task-dir", "tasks", *SIZE, "-o", "out"]
    good("bench", "quality", "dense", "--method", "sparse_only", "--levels", "0.4", "--token-policy", "all", *common)
    outcome = good("reproduce", "parts", "dense", "--method", "sparse_only", "--levels", "0.4", *common)
    assert "sparse_only 40% last_fraction:0.1 tasks" in outcome.out
    assert "sparse_only 40% all" not in outcome.out.partition("##")[0]
    again = good("bench", "quality", "dense", "--method", "sparse_only", "--levels", "0.4", "--token-policy", "all", *common)
    assert "7 records" in again.out  # the tables' own are none of a bench's


def test_all_tables_in_one_process(folder, monkeypatch):
    outcome = good(
        "reproduce", "all", "dense", "--task-dir", "tasks", *QUICK, "--populations", "2,3", "--samples", "1,2",
        "--method", "searched", "--method", "sparse_only", "--levels", "0.5",
    )  # fmt: skip
    assert outcome.out.count("Paper's ordering") == 9
    assert len(list((folder / "out" / "dense" / "tables").iterdir())) == 18
    names = {path.parent.parent.name for path in (folder / "out").rglob("*.json")}
    assert {"int4", "samples-1", "samples-2", "search-size"} <= names
    table = (folder / "out" / "dense" / "tables" / "main.md").read_text()
    monkeypatch.setattr("rsparse.evaluation.tasks.load_tasks", lambda *given: pytest.fail("asked for tasks"))
    for name in ("tasks", "text.txt", "test.txt"):
        (folder / name).rename(folder / f"{name}.away")
    shown = good("reproduce", "main", "dense", *QUICK[QUICK.index("--searched") :], "--levels", "0.5", "--show").out
    assert shown.count("| not run") == 16 - 4
    assert next(line for line in table.splitlines() if line.startswith("| sparse_only")) in shown
    assert "| failed" not in shown
    parts = good("reproduce", "parts", "dense", "--method", "sparse_only", "--levels", "0.5", "-o", "out", "--show").out
    assert "test, all" in parts  # the text's column
    assert "not run" not in parts


def test_another_protocol_is_refused(folder):
    good("reproduce", "samples", "dense", "--method", "sparse_only", "--samples", "1", *QUICK)
    bad(
        "holds cells of seed = 0",
        "reproduce",
        "samples",
        "dense",
        "--method",
        "sparse_only",
        "--samples",
        "1",
        *QUICK,
        "--seed",
        1,
    )


def test_what_fails_is_named_and_the_rest_is_there(folder):
    outcome = run(
        "reproduce", "samples", "dense", "--samples", "1", *SIZE, "--searched", "samples=999,population=2,generations=1",
        "--method", "sparse_only", "--method", "searched", "-o", "out",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err  # the table sets the samples itself
    folder.joinpath("short.txt").write_text(words(100, seed=1))  # fewer windows than its tokens could be
    outcome = run(
        "reproduce", "parts", "dense", "--levels", "0.5", *SIZE, "--searched", "samples=20", "--method", "sparse_only",
        "--method", "searched", "-o", "short", "--task-dir", "tasks", "--calibration-data", "short.txt",
    )  # fmt: skip
    assert outcome.code == 2
    assert "6 of the cells failed" in outcome.err or "4 of the cells failed" in outcome.err
    assert "the search samples 20" in outcome.err
    table = (folder / "short" / "dense" / "tables" / "parts.md").read_text()
    assert "| sparse_only | 50% |" in table
    assert "failed: " in table
    shown = good("reproduce", "parts", "dense", "--levels", "0.5", "--searched", "samples=20", "-o", "short", "--show").out
    assert "failed: " in shown


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("table 'magic' is unknown; choose among generation", ["magic"]),
        ("TABLE is empty", [","]),
        ("must name policies with commas, each once", ["samples", "--token-policy", "all,all"]),
        ("token policy 'most'", ["samples", "--token-policy", "most"]),
        ("dense leaves nothing sparse", ["samples", "--token-policy", "dense"]),
        ("no table here has method 'wina'", ["samples", "--method", "wina"]),
        ("no table here has level 0.6", ["samples", "--levels", "0.6"]),
        ("--levels 'x' must be numbers", ["samples", "--levels", "x"]),
        ("--samples '0' must be whole numbers from 1 on", ["samples", "--samples", "0"]),
        ("--populations '2,2' must be whole numbers from 2 on", ["samples", "--populations", "2,2"]),
        ("--searched 'population' must be OPTION=VALUE", ["samples", "--searched", "population"]),
        ("method searched takes no option 'size'", ["samples", "--searched", "size=2"]),
        ("text file none.txt does not exist", ["samples", "--data", "none.txt"]),
        ("task folder none does not exist", ["main", "--task-dir", "none"]),
    ],
)
def test_bad_input_is_found_before_the_model_loads(here, says, arguments):
    bad(says, "reproduce", arguments[0], "no-such-model", *SIZE[:6], *arguments[1:], "-o", "out")


def test_a_search_on_too_few_windows_is_found_before_the_model_loads(here):
    bad(
        "takes 30 windows of 24 tokens, and --calibration-tokens 480 holds 20; give 720, or --searched samples=20",
        "reproduce", "search-size", "no-such-model", *SIZE, "--searched", "samples=30", "-o", "out",
    )  # fmt: skip


def test_a_model_that_does_not_load_is_one_line_and_no_folder(here):
    bad("no-such-model", "reproduce", "samples", "./no-such-model", *ONE, *QUICK)
    assert not (here / "out").exists()


def test_without_a_cell_there_is_no_table(here, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("rsparse.benchmark.quality.QualityBench._run_model", stop)
    outcome = run("reproduce", "samples", "dense", *ONE, *QUICK)
    assert outcome.code == 130
    assert "samples.md" not in outcome.err
    assert not (here / "out").exists()


def test_show_needs_a_folder(here):
    bad("none is not there", "reproduce", "samples", "dense", *SIZE, "-o", "none", "--show")
    assert not (here / "none").exists()


def test_show_of_a_model_that_is_not_there(here):
    (here / "out" / "dense").mkdir(parents=True)
    bad("out holds nothing of other", "reproduce", "samples", "other", "-o", "out", "--show")
    bad("nothing is left of the tables", "reproduce", "main", "dense", "-o", "out", "--show")


def test_killed_it_goes_on(folder):
    """kill -9 in the middle leaves whole records alone; Ctrl-C writes the tables of what is there."""
    many = ",".join(map(str, range(1, 13)))
    command = [sys.executable, "-c", SLOWLY, "reproduce", "samples", "dense", "--samples", many, *ONE, *map(str, QUICK)]
    for how, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        before = len(list((folder / "out").rglob("*test.json")))
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip
        limit = time.monotonic() + 120
        while (
            len(list((folder / "out").rglob("*test.json"))) < before + 1 and time.monotonic() < limit and process.poll() is None
        ):
            time.sleep(0.002)  # the next record is not far
        process.send_signal(how)
        _, said = process.communicate()
        assert process.returncode == code, said.decode()
    assert (folder / "out" / "dense" / "tables" / "samples.md").is_file()
    records = list((folder / "out").rglob("*test.json"))
    stamps = {path: path.stat().st_mtime_ns for path in records}
    assert all(json.loads(path.read_text())["metrics"] for path in records)
    assert "not run" not in good("reproduce", "samples", "dense", "--samples", many, *ONE, *QUICK).out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_one_row_of_a_task_cannot_be_compared(folder):
    bad("--limit must be 2 or more", "reproduce", "oracle", "dense", "--task-dir", "tasks", "--limit", "1", *QUICK)
    assert not (folder / "out").exists()
