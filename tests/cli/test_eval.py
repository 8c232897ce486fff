"""`rsparse eval` with tasks, and against another model or a record."""

from __future__ import annotations

import json
import math
import sys

import pytest

import rsparse
from rsparse.evaluation.harness_lm import HarnessLM
from rsparse.evaluation.tasks import load_tasks, run_tasks
from rsparse.token_policy import TokenPolicy
from tests.cli.conftest import bad, good
from tests.support.folders import dense_folder
from tests.support.models import words

TEXT = ["--perplexity", "test.txt", "--seq-len", 24, "--max-tokens", 240]
TASKS = ["--task-dir", "tasks"]


@pytest.fixture(autouse=True)
def _tasks(here):
    folder = here / "tasks"
    folder.mkdir()
    contexts = words(60, seed=8).split("on.")
    for name, choices in (("two", [" the stone walks", "bread"]), ("four", ["in", "her tower", "a river and", "42"])):
        rows = [
            {"context": f"{text} {i}", "choices": choices, "label": i % len(choices)} for i, text in enumerate(3 * contexts)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    rows = [{"context": "the river", "answer": "4"}, {"context": "a stone", "answer": "#### 5"}]
    (folder / "gsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics_of(path):
    return json.loads(path.read_text())["metrics"]


def config_of(path):
    return json.loads(path.read_text())["config"]


@pytest.mark.parametrize("policy", ["all", "decode", "last_fraction:0.5"])
def test_tasks(here, policy):
    outcome = good(
        "eval", "sparse", *TASKS, "--tasks", "two,four", "--limit", 10, "--token-policy", policy, "--json", "eval.json"
    )
    model, tokenizer = rsparse.from_pretrained("sparse", device="cpu")
    tasks = load_tasks(["two", "four"], "tasks")
    expected = run_tasks(HarnessLM(model, tokenizer), tasks, TokenPolicy.parse(policy), limit=10)
    found, config = metrics_of(here / "eval.json"), config_of(here / "eval.json")
    assert found == {"tasks": {name: score.to_dict() for name, score in expected.items()}}
    assert list(found["tasks"]["two"]) == ["acc", "acc_norm", "stderr", "n", "chance", "rows"]
    assert [found["tasks"][name]["chance"] for name in ("two", "four")] == [0.5, 0.25]
    assert (config["task_dir"], config["limit"], config["num_fewshot"], config["chat_template"]) == ("tasks", 10, None, False)
    assert (config["token_policy"], config["method"]) == (policy, "rsparse")
    assert "data" not in config
    for name, score in expected.items():
        assert f"acc {score.mean('acc'):.4f}" in next(line for line in outcome.out.splitlines() if line.startswith(name))
    assert outcome.err == ""


def test_text_beside_tasks_of_every_kind(here):
    good("eval", "sparse", *TEXT, *TASKS, "--no-dense", "--json", "both.json")
    found = metrics_of(here / "both.json")
    assert list(found["tasks"]) == ["four", "gsm", "two"]
    assert found["tasks"]["gsm"]["exact_match"] in (0, 0.5, 1)
    assert "chance" not in found["tasks"]["gsm"]
    assert found["tokens"] == 10 * 23


@pytest.mark.parametrize("policy", ["all", "decode"])
def test_against_the_dense_form_a_model_and_a_record(here, policy):
    """Three ways to say the same other side."""
    common = [*TEXT, *TASKS, "--tasks", "two,four", "--token-policy", policy]
    good("eval", "dense", *common, "--json", "dense.json")
    other = metrics_of(here / "dense.json")
    found = {}
    for against in ("dense", "./dense", "dense.json"):
        outcome = good("eval", "sparse", *common, "--against", against, "--json", "eval.json")
        metrics, config = metrics_of(here / "eval.json"), config_of(here / "eval.json")
        found[against] = metrics["against"]
        assert config["against"] == against.removeprefix("./")
        assert config["token_policy"] == policy
        shown = outcome.out.partition("\nagainst ")[2]
        ratio = metrics["against"]["perplexity_ratio"]["value"]
        assert f"× {ratio:.4f}" in shown
        assert {"two", "four", "mean"} <= {line.partition(" ")[0] for line in shown.splitlines()}
    assert found["dense"] == found["./dense"]
    assert found["dense.json"]["tasks"]["difference"] == found["dense"]["tasks"]["difference"]
    assert found["dense.json"]["perplexity_ratio"] == pytest.approx(found["dense"]["perplexity_ratio"], abs=1e-4)
    windows = [a - b for a, b in zip(metrics["window_nll"], other["window_nll"], strict=True)]
    assert ratio == pytest.approx(math.exp(sum(windows) / 10), abs=2e-6)
    for name in ("two", "four"):
        by_row = [
            int(a) - int(b)
            for a, b in zip(metrics["tasks"][name]["rows"]["acc"], other["tasks"][name]["rows"]["acc"], strict=True)
        ]
        assert found["dense"]["tasks"]["difference"][name]["value"] == pytest.approx(sum(by_row) / 12, abs=1e-6)
    assert ratio != 1


def test_a_model_against_itself(here):
    good("eval", "sparse", *TEXT, *TASKS, "--tasks", "two", "--json", "a.json")
    good("eval", "sparse", *TEXT, *TASKS, "--tasks", "two", "--against", "a.json", "--json", "b.json")
    found = metrics_of(here / "b.json")["against"]
    assert found["perplexity_ratio"] == {"value": 1, "low": 1, "high": 1}
    assert found["tasks"]["mean_difference"] == {"value": 0, "low": 0, "high": 0}


def test_records_of_other_rows(here, request):
    good("eval", "sparse", *TEXT, *TASKS, "--tasks", "two", "--limit", 5, "--json", "a.json")
    (here / "other.txt").write_text(words(400, seed=9))
    request.getfixturevalue("no_model")
    against = ["--against", "a.json"]
    two = [*TASKS, "--tasks", "two"]
    bad("of limit 5, and this run of 6", "eval", "sparse", *two, "--limit", 6, *against)
    bad("of limit 5, and this run of None", "eval", "sparse", *two, *against)
    bad("of data test.txt, and this run of other.txt", "eval", "sparse", "--perplexity", "other.txt", "--seq-len", 24, *against)
    bad("of seq_len 24, and this run of 32", "eval", "sparse", "--perplexity", "test.txt", "--seq-len", 32, *against)
    bad("four, two on one side only", "eval", "sparse", *TASKS, "--tasks", "four", "--limit", 5, *against)


def test_other_windows(here):
    good("eval", "sparse", *TEXT, "--json", "a.json")
    bad("max_tokens 240, and this run of 48", "eval", "sparse", *TEXT[:-1], 48, "--against", "a.json")
    # decode scores half of each window
    bad("windows pair only", "eval", "sparse", *TEXT, "--token-policy", "decode", "--against", "a.json")


def test_another_model_that_is_not_there(here):
    bad("./nowhere", "eval", "sparse", *TEXT, "--against", "./nowhere")


def test_a_chat_template_that_is_not_there(here):
    folder = dense_folder(here / "plain")
    (folder / "chat_template.jinja").unlink()
    bad("no chat template; leave out --chat-template", "eval", "plain", *TEXT, *TASKS, "--chat-template")
    good("eval", "sparse", *TASKS, "--tasks", "two", "--chat-template", "--json", "chat.json")
    good("eval", "sparse", *TASKS, "--tasks", "two", "--json", "plain.json")
    assert config_of(here / "chat.json")["chat_template"] is True
    assert metrics_of(here / "chat.json") != metrics_of(here / "plain.json")


# ---- what users get wrong


@pytest.fixture
def no_model(monkeypatch):
    """Said before a model loads."""
    monkeypatch.setattr(
        "rsparse.checkpoint.from_pretrained", lambda *arguments, **options: pytest.fail("worked before it checked")
    )


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "say what to measure"),
        (["--against", "dense"], "say what to measure"),
        (["--task-dir", "nowhere"], "task folder nowhere does not exist"),
        (["--task-dir", "tasks", "--tasks", "two,other"], "no other.jsonl; it has four, gsm, two"),
        (["--task-dir", "tasks", "--tasks", " ,"], "--tasks names no task"),
        (["--task-dir", "tasks", "--limit", 0], "--limit must be 1 or more"),
        (["--task-dir", "tasks", "--limit", "all"], "'all'"),
        (["--task-dir", "tasks", "--num-fewshot", -1], "--num-fewshot must be 0 or more"),
        (["--task-dir", "tasks", "--num-fewshot", 5], "--num-fewshot is for the harness's own tasks"),
        (["--task-dir", "tasks", "--perplexity", "missing.txt"], "missing.txt does not exist"),
        (["--task-dir", "tasks", "--against", "missing.json"], "cannot read record missing.json"),
        (["--task-dir", "tasks", "--against", "sparsify.json"], "nothing in common"),
        (["--task-dir", "tasks", "--token-policy", "sometimes"], "'sometimes'"),
    ],
)
def test_evaluations_that_make_no_sense(options, says):
    bad(says, "eval", "sparse", *options)


@pytest.mark.usefixtures("no_model")
def test_task_rows(here):
    with (here / "tasks" / "gsm.jsonl").open("a") as file:
        file.write(json.dumps({"context": "the river", "answer": 4}) + "\n")
    bad("tasks/gsm.jsonl, row 3: answer must be a string", "eval", "sparse", "--task-dir", "tasks")


@pytest.mark.usefixtures("no_model")
def test_tasks_without_the_harness(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for options in (["--tasks", "gsm8k"], ["--task-dir", "tasks"]):
        bad("pip install -e '.[tasks]'", "eval", "sparse", *options)


def test_a_dense_model_against_itself(monkeypatch):
    monkeypatch.setattr("rsparse.evaluation.measure.run_tasks", lambda *a, **o: pytest.fail("worked before it checked"))
    bad("dense is dense already", "eval", "dense", "--task-dir", "tasks", "--against", "dense")
