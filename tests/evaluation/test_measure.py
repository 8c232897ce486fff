from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from rsparse.calibration.windows import make_windows
from rsparse.errors import RSparseError
from rsparse.evaluation import measure as module
from rsparse.evaluation.harness_lm import HarnessLM
from rsparse.evaluation.measure import Plan, measure
from rsparse.evaluation.perplexity import evaluate
from rsparse.evaluation.tasks import run_tasks
from rsparse.token_policy import TokenPolicy
from tests.support.models import text_file, tiny_model, tiny_tokenizer
from tests.support.recipes import sparse_of

POLICIES = [TokenPolicy(), TokenPolicy("decode"), TokenPolicy("last_fraction", 0.5, 2), TokenPolicy("dense")]


@functools.cache
def dense():
    return tiny_model("llama", dtype=torch.float64)


@pytest.fixture
def folder(tmp_path):
    for name, choices in (("first", ["walks", "and the stone"]), ("second", ["in her tower", "bread", "a"])):
        rows = [{"context": f"the river {i}", "choices": choices, "label": i % 2} for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def whole(folder):
    """A plan of text and tasks."""
    text = str(text_file(folder, 200))
    return Plan(TokenPolicy(), text=text, seq_len=24, max_tokens=121, task_dir=folder, tasks=("second", "first"), limit=5)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_text_and_tasks(whole, policy):
    plan = Plan(**{**vars(whole), "token_policy": policy})
    model, tokenizer, tasks = sparse_of("llama"), tiny_tokenizer(), plan.load_tasks()
    found = measure(model, tokenizer, plan, tasks)
    windows = make_windows([Path(plan.text).read_text()], tokenizer, 24, max_windows=5)
    expected = evaluate(model, windows, policy)
    assert found.text.window_nll == expected.window_nll
    assert (found.text.kl_to_dense, found.text.tokens) == (expected.kl_to_dense, expected.tokens)
    scores = run_tasks(HarnessLM(model, tokenizer), tasks, policy, limit=5)
    assert found.tasks == scores
    assert list(found.tasks) == ["second", "first"]
    metrics = found.metrics()
    assert metrics["tasks"] == {name: score.to_dict() for name, score in scores.items()}
    assert metrics["perplexity"] == found.text.perplexity
    lines = found.lines(plan)
    assert lines[0].startswith(f"perplexity        {found.text.perplexity:.3f}")
    assert any(line.startswith("first ") and f"acc {scores['first'].mean('acc'):.4f}" in line for line in lines)
    assert sum("chance 0.500" in line for line in lines) == sum("chance 0.333" in line for line in lines) == 1
    assert all(str(policy) in line for line in lines if line.startswith(("perplexity", "task")))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_dense_plan_scores_the_same_tokens_dense(whole, policy):
    plan = Plan(**{**vars(whole), "token_policy": policy})
    tasks, tokenizer = plan.load_tasks(), tiny_tokenizer()
    found = measure(sparse_of("llama"), tokenizer, plan.dense(), tasks)
    expected = measure(dense(), tokenizer, plan, tasks)
    assert found.text.window_nll == pytest.approx(expected.text.window_nll, abs=2e-5)
    assert found.text.tokens == expected.text.tokens
    assert found.text.sparse_row_share == 0
    assert found.tasks == expected.tasks
    assert found.text.kl_to_dense is None


def test_one_without_the_other(whole):
    text = Plan(TokenPolicy(), text=whole.text, seq_len=24)
    assert text.load_tasks() == []
    found = measure(dense(), tiny_tokenizer(), text, [])
    assert found.tasks == {}
    assert "tasks" not in found.metrics()
    assert len(found.lines(text)) == 1
    assert "task_dir" not in text.config()
    only = Plan(TokenPolicy(), task_dir=whole.task_dir, limit=2)
    found = measure(dense(), tiny_tokenizer(), only, only.load_tasks())
    assert found.text is None
    assert list(found.metrics()) == ["tasks"]
    assert len(found.lines(only)) == 3
    assert "data" not in only.config()


def test_the_config(whole):
    plan = Plan(**{**vars(whole), "token_policy": TokenPolicy("last_fraction", 0.5, 3)})
    assert plan.config() == {
        "token_policy": "last_fraction:0.5", "sink_tokens": 3, "data": Path(whole.text).name, "seq_len": 24,
        "max_tokens": whole.max_tokens,
        "wikitext_join": False, "task_dir": whole.task_dir.name, "limit": 5, "num_fewshot": None, "chat_template": False,
    }  # fmt: skip


def test_a_missing_chat_template_is_said_before_the_work(whole, monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    plan = Plan(**{**vars(whole), "chat": True})
    monkeypatch.setattr(module, "evaluate", lambda *arguments, **options: pytest.fail("worked before it checked"))
    with pytest.raises(RSparseError, match="no chat template"):
        measure(dense(), tokenizer, plan, plan.load_tasks())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": "a.txt", "max_tokens": 511}, "--max-tokens 511"),
        ({"text": "a.jsonl", "wikitext_join": True}, "--wikitext-join"),
        ({"wikitext_join": True}, "--wikitext-join"),
        ({"tasks": ("a",), "limit": 0}, "--limit must be 1 or more, got 0"),
        ({"tasks": ("a",), "num_fewshot": -1}, "--num-fewshot must be 0 or more, got -1"),
        ({"task_dir": Path("there"), "num_fewshot": 2}, "--num-fewshot is for the harness's own tasks"),
    ],
)
def test_plans_that_make_no_sense(options, says):
    with pytest.raises(RSparseError, match=says):
        Plan(TokenPolicy(), **options)


def test_plans_at_the_edge():
    Plan(TokenPolicy(), text="a.txt", max_tokens=512, limit=1, num_fewshot=0, task_dir=Path("there"))
