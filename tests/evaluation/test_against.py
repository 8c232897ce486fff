from __future__ import annotations

import json
import types
from pathlib import Path

import pytest

from rsparse.errors import RSparseError
from rsparse.evaluation.against import comparison, recorded
from rsparse.evaluation.measure import Measured, Plan
from rsparse.evaluation.perplexity import Perplexity
from rsparse.evaluation.tasks import TaskScore
from rsparse.token_policy import TokenPolicy

TEXT = Plan(TokenPolicy(), text="test.txt", seq_len=24)
TASKS = Plan(TokenPolicy(), task_dir=Path("there/tasks"), limit=4)
BOTH = Plan(**{**vars(TEXT), "task_dir": TASKS.task_dir, "limit": 4})
LOADED = [types.SimpleNamespace(task_name="x")]


def measured(nll=(1.0, 2.0), acc=(1, 1, 0, 1), tokens=46):
    text = Perplexity(4.5, tokens, list(nll)) if nll else None
    return Measured(text, {"x": TaskScore("x", {"acc": list(map(float, acc))}, 0.5)} if acc else {})


def record(path, found, plan, **changes):
    path.write_text(json.dumps({"schema": 1, "config": plan.config() | changes, "metrics": found.metrics()}))
    return path


def test_a_record_read_back(tmp_path):
    path = tmp_path / "a.json"
    for plan, found in ((BOTH, measured()), (TEXT, measured(acc=())), (TASKS, measured(nll=()))):
        loaded = LOADED if plan.has_tasks else []
        back = recorded(record(path, found, plan), plan, loaded)
        assert back.tasks == found.tasks
        assert (back.text is None) == (found.text is None)
        if found.text is not None:
            assert (back.text.perplexity, back.text.tokens, back.text.window_nll) == (4.5, 46, [1.0, 2.0])
    # More on one side than on the other: what both have is compared.
    assert recorded(record(path, measured(), BOTH), TEXT).text is not None
    assert recorded(record(path, measured(acc=()), TEXT), BOTH, LOADED).tasks == {}
    # Another policy is what one compares.
    other = Plan(**{**vars(TEXT), "token_policy": TokenPolicy("decode", sink_tokens=3)})
    assert recorded(record(path, measured(), other), TEXT).text is not None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": "other.txt"}, "data other.txt, and this run of test.txt"),
        ({"seq_len": 32}, "seq_len 32"),
        ({"wikitext_join": True}, "wikitext_join"),
        ({"task_dir": "others"}, "task_dir others"),
        ({"limit": None}, "limit None, and this run of 4"),
        ({"num_fewshot": 5}, "num_fewshot 5"),
        ({"chat_template": True}, "chat_template"),
    ],
)
def test_a_record_of_other_rows(tmp_path, changes, says):
    path = record(tmp_path / "a.json", measured(), BOTH, **changes)
    with pytest.raises(RSparseError, match=says) as caught:
        recorded(path, BOTH, LOADED)
    assert str(path) in str(caught.value)


def test_a_record_of_other_things(tmp_path):
    path = record(tmp_path / "a.json", measured(nll=()), TASKS)
    with pytest.raises(RSparseError, match="nothing in common"):
        recorded(path, TEXT)
    with pytest.raises(RSparseError, match="other tasks than this run: x, y on one side only"):
        recorded(path, TASKS, [types.SimpleNamespace(task_name="y")])
    with pytest.raises(RSparseError, match="nothing in common"):
        recorded(record(path, measured(acc=()), TEXT), TASKS, LOADED)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "3",
        "{}",
        '{"config": {}}',
        '{"config": {}, "metrics": []}',
        '{"config": 3, "metrics": {}}',
        '{"config": {}, "metrics": {"window_nll": [1]}}',
        '{"config": {}, "metrics": {"tasks": {"x": {"acc": 1}}}}',
        '{"config": {}, "metrics": {"tasks": {"x": {"rows": {}}}}}',
        '{"config": {}, "metrics": {"tasks": {"x": {"rows": {"acc": 3}}}}}',
        '{"config": {}, "metrics": {"tasks": [1]}}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_record(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RSparseError, match="is not a record of `rsparse eval --json`") as caught:
        recorded(path, TEXT)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_not_there(tmp_path):
    with pytest.raises(RSparseError, match="cannot read record"):
        recorded(tmp_path / "a.json", TEXT)
    with pytest.raises(RSparseError, match="cannot read record"):
        recorded(tmp_path, TEXT)


def test_a_comparison():
    # ln ratios 0.1 and 0.3: mean 0.2, error 0.1; tasks: differences 0, 0, -1, 0
    found = comparison(measured(nll=(1.1, 2.3), acc=(1, 1, 0, 0)), measured(acc=(1, 1, 1, 0)))
    assert found["perplexity"] == 4.5
    assert found["perplexity_ratio"] == {"value": 1.221403, "low": 1.004012, "high": 1.485864}  # e^(0.2 ± 0.1959964)
    assert found["tasks"]["difference"]["x"]["value"] == found["tasks"]["mean_difference"]["value"] == -0.25
    assert found["tasks"]["above_chance_share"]["value"] == 0
    lines = "\n".join(found["lines"])
    assert "× 1.2214   (95 %: 1.0040 to 1.4859" in lines
    assert "x     acc -0.2500 (95 %: -0.7400 to +0.2400)" in lines
    assert "mean  acc -0.2500 (95 %" in lines
    assert "accuracy above chance kept: 0.0%" in lines


def test_parts_that_one_side_lacks():
    assert "tasks" not in comparison(measured(acc=()), measured())
    assert "perplexity_ratio" not in comparison(measured(nll=()), measured())
    at_chance = comparison(measured(nll=()), measured(acc=(1, 1, 0, 0)))
    assert at_chance["tasks"]["above_chance_share"] is None
    assert not any("kept" in line for line in at_chance["lines"])
    with pytest.raises(RSparseError, match="nothing in common"):
        comparison(measured(acc=()), measured(nll=()))


@pytest.mark.parametrize("other", [{"tokens": 48}, {"nll": (1.0, 2.0, 3.0)}])
def test_windows_that_do_not_pair(other):
    with pytest.raises(RSparseError, match="windows pair only between models of one tokenizer"):
        comparison(measured(acc=()), measured(acc=(), **other))
