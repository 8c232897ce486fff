from __future__ import annotations

import functools
import json
import logging
import sys
from pathlib import Path

import datasets
import huggingface_hub
import lm_eval.tasks
import pytest

from rsparse.errors import RSparseError
from rsparse.evaluation import tasks as module
from rsparse.evaluation.harness_lm import HarnessLM
from rsparse.evaluation.tasks import TaskScore, load_tasks, run_tasks
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, tiny_tokenizer
from tests.support.recipes import sparse_of

ROWS = [{"context": "the river", "choices": ["walks", "and the stone"], "label": i % 2} for i in range(5)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_a_scores_entry():
    score = TaskScore("x", {"acc": [1, 0, 1, 1], "acc_norm": [0, 0, 1, 0]}, 0.25)
    # mean 3/4, variance 1/4, error √(1/16)
    assert score.to_dict() == {
        "acc": 0.75, "acc_norm": 0.25, "stderr": 0.25, "n": 4, "chance": 0.25, "rows": {"acc": "1011", "acc_norm": "0010"},
    }  # fmt: skip
    assert TaskScore("x", {"acc": [1.0]}, None).to_dict() == {"acc": 1, "stderr": None, "n": 1, "rows": {"acc": "1"}}


@pytest.mark.parametrize(
    "score",
    [
        TaskScore("x", {"acc": [1.0, 0.0], "acc_norm": [1.0, 1.0]}, 0.5),
        TaskScore("x", {"rouge1": [0.25, 1.0], "rougeL": [0.0, 0.1234]}, None),
        TaskScore("x", {"exact_match,strict-match": [1.0, 0.0], "exact_match,flexible-extract": [1.0, 1.0]}, None),
    ],
)
def test_a_record_gives_the_score_back(score):
    assert TaskScore.from_dict("x", json.loads(json.dumps(score.to_dict()))) == score


@pytest.mark.parametrize("rows", [{}, {"acc": "101", "acc_norm": "10"}, {"acc": "1x1"}])
def test_an_entry_that_is_none(rows):
    with pytest.raises(ValueError, match=r"rows|x"):
        TaskScore.from_dict("x", {"rows": rows})


def test_the_primary_metric():
    for names, primary in (
        (["acc_norm", "acc"], "acc"),
        (["rouge1", "rougeL"], "rougeL"),
        (["exact_match"], "exact_match"),
        (["exact_match,strict-match", "exact_match,flexible-extract"], "exact_match,strict-match"),
    ):
        assert TaskScore("x", {name: [1.0] for name in names}, None).primary == primary


def test_running_tasks(folder):
    lm = HarnessLM(tiny_model("qwen2"), tiny_tokenizer())
    [task] = load_tasks(None, folder)
    found = run_tasks(lm, [task], limit=4)["made"]
    first = float(found.rows["acc"][0])
    assert found.rows["acc"] == [first, 1 - first, first, 1 - first]  # the same question, the other label
    assert found.chance == 0.5
    assert len(run_tasks(lm, [task])["made"].rows["acc"]) == 5  # the task is as it was
    # A policy stays until the next run says another.
    lm = HarnessLM(sparse_of("llama"), tiny_tokenizer())
    run_tasks(lm, [task], TokenPolicy("decode"))
    assert lm.token_policy == TokenPolicy("decode")
    run_tasks(lm, [task])
    assert lm.token_policy == TokenPolicy()


def test_it_is_quiet(folder, capfd, caplog):
    logger = logging.getLogger("lm_eval")
    bars = datasets.is_progress_bar_enabled()
    level = logger.level
    lm = HarnessLM(tiny_model("qwen2"), tiny_tokenizer())
    for _ in range(2):
        run_tasks(lm, load_tasks(None, folder), chat=True)
        assert (capfd.readouterr(), caplog.records) == (("", ""), [])
        assert (logger.level, datasets.is_progress_bar_enabled()) == (level, bars)
        datasets.disable_progress_bars()  # who has turned them off keeps them off
        bars = False
    datasets.enable_progress_bars()


def test_a_metric_over_the_whole_only():
    with pytest.raises(RSparseError, match="scores no single row"):
        module._score("x", [{"filter": "none", "metrics": ["ppl"], "ppl": (1.0, 2), "arguments": [("a",)]}])


def test_a_chat_without_a_template(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(RSparseError, match="no chat template; leave out --chat-template"):
        run_tasks(HarnessLM(tiny_model("qwen2"), tokenizer), load_tasks(None, folder), chat=True)


@pytest.fixture
def few_tasks(monkeypatch):
    """The harness with no other task than gsm8k: its index of all takes ten seconds."""
    where = str(Path(lm_eval.tasks.__file__).parent / "gsm8k")
    few = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False, include_path=where)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", few)


@pytest.mark.usefixtures("few_tasks")
def test_a_task_that_the_harness_does_not_have():
    with pytest.raises(RSparseError, match="no task 'gsm9k'") as caught:
        load_tasks(["gsm8k", "gsm9k"])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("few_tasks")
def test_without_the_hub(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(RSparseError, match=r"cannot load task gsm8k .*--task-dir") as caught:
        load_tasks(["gsm8k"])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_without_the_harness(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for names, where in ((["gsm8k"], None), (None, folder)):
        with pytest.raises(RSparseError, match=r"pip install -e '\.\[tasks\]'"):
            load_tasks(names, where)
