from __future__ import annotations

import json

import pytest
from lm_eval.api.model import LM

from rsparse.errors import RSparseError
from rsparse.evaluation.task_files import read_task, rouge, task_files
from rsparse.evaluation.tasks import load_tasks, run_tasks

CHOICES = {"context": "the river", "choices": ["aa", "bbbb"], "label": 1}
CONTEXTS = {"contexts": ["her river", "her tower"], "continuation": " walks", "label": 0}
ANSWER = {"context": "2 + 2", "answer": "#### 4"}
SUMMARY = {"context": "the text", "summary": "the river"}


class Table(LM):
    """log p from a table of (context, continuation)."""

    def __init__(self, table):
        super().__init__()
        self.table, self.tokenizer, self.asked = table, None, []

    def loglikelihood(self, requests):
        self.asked += [request.args for request in requests]
        return [(self.table[request.args], False) for request in requests]

    def loglikelihood_rolling(self, requests):
        raise AssertionError

    def generate_until(self, requests):
        self.asked += [request.args for request in requests]
        return [self.table[request.args[0]] for request in requests]


def write(folder, rows, name="made"):
    path = folder / f"{name}.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_choices(tmp_path):
    rows = [
        CHOICES | {"id": "made/0", "note": 1},
        CHOICES | {"id": 1},  # ids of another type, and a column that only some rows have
        {"context": "\nA stone ", "choices": ["x", " yy", "zzz"], "label": 0},
    ]
    write(tmp_path, rows)
    table = {
        ("the river", " aa"): -2.0,
        ("the river", " bbbb"): -3.0,  # acc takes the first; -2 / 2 < -3 / 4, so acc_norm takes the second
        ("\nA stone ", " x"): -1.0,
        ("\nA stone ", "  yy"): -1.5,  # / 3: its own leading space counts
        ("\nA stone ", " zzz"): -2.0,
    }
    model = Table(table)
    score = run_tasks(model, load_tasks(None, tmp_path))["made"]
    assert model.asked == [*list(table)[:2], *list(table)]
    assert score.rows == {"acc": [0, 0, 1], "acc_norm": [1, 1, 0]}
    assert score.chance == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)
    assert score.primary == "acc"


def test_contexts(tmp_path):
    rows = [CONTEXTS, CONTEXTS | {"label": 1, "sentence": "her _ walks"}]
    write(tmp_path, rows)
    table = {("her river", " walks"): -1.0, ("her tower", " walks"): -2.0}
    model = Table(table)
    score = run_tasks(model, load_tasks(None, tmp_path))["made"]
    assert model.asked == [*table, *table]
    assert score.rows == {"acc": [1, 0]}
    assert score.chance == 0.5


@pytest.mark.parametrize("row", [ANSWER, SUMMARY])
def test_text_is_asked_for_as_it_stands(tmp_path, row):
    write(tmp_path, [row])
    model = Table({row["context"]: " 4"})
    run_tasks(model, load_tasks(None, tmp_path))
    [(context, settings)] = model.asked
    assert context == row["context"]
    assert settings["until"] == ["\n\n", "Question:"]
    assert settings["do_sample"] is False


def test_labels_choose_between_an_answer_and_choices(tmp_path):
    # A row may carry more than its kind needs.
    task = read_task("made", write(tmp_path, [CHOICES | {"answer": "bbbb"}]))
    assert task.OUTPUT_TYPE == "multiple_choice"
    assert read_task("made", write(tmp_path, [ANSWER | {"summary": "four"}])).config.metric_list[0]["metric"] == "exact_match"


def test_files_by_name(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path, [CHOICES], name)
    (tmp_path / "notes.txt").write_text("not a task")
    assert list(task_files(tmp_path)) == ["a", "b", "c"]
    assert task_files(tmp_path, ["c", "a"]) == {"c": tmp_path / "c.jsonl", "a": tmp_path / "a.jsonl"}
    assert [task.task_name for task in load_tasks(["c", "a"], str(tmp_path))] == ["c", "a"]


def test_folders_that_do_not_do(tmp_path):
    with pytest.raises(RSparseError, match="nowhere does not exist"):
        task_files(tmp_path / "nowhere")
    with pytest.raises(RSparseError, match=r"holds no \.jsonl"):
        task_files(tmp_path)
    write(tmp_path, [CHOICES], "a")
    with pytest.raises(RSparseError, match=r"no b\.jsonl; it has a$"):
        task_files(tmp_path, ["a", "b"])


BAD = {
    "no object": ["a", "b"],
    "no key": {"text": "the river"},
    "context is no string": CHOICES | {"context": 3},
    "one choice": CHOICES | {"choices": ["aa"], "label": 0},
    "choices are no list": CHOICES | {"choices": "ab"},
    "an empty choice": CHOICES | {"choices": ["aa", ""]},
    "a choice is a number": CHOICES | {"choices": ["aa", 3]},
    "no label": {key: value for key, value in CHOICES.items() if key != "label"},
    "label beyond": CHOICES | {"label": 2},
    "label below": CHOICES | {"label": -1},
    "label is a word": CHOICES | {"label": "1"},
    "label is true": CHOICES | {"label": True},
    "one context": CONTEXTS | {"contexts": ["her river"]},
    "no continuation": CONTEXTS | {"continuation": ""},
    "contexts' label beyond": CONTEXTS | {"label": 2},
    "answer is a number": ANSWER | {"answer": 4},
    "no answer": ANSWER | {"answer": ""},
    "no summary": SUMMARY | {"summary": ""},
    "mixed kinds": CONTEXTS,
}


SAYS = {
    "context is no string": "context must be a string",
    "one choice": "choices must be two strings or more",
    "choices are no list": "choices must be two strings or more",
    "an empty choice": "choices must be two strings or more, none of them empty",
    "a choice is a number": "choices must be two strings or more",
    "label beyond": "label must be a whole number from 0 to 1, got 2",
    "label below": "label must be a whole number from 0 to 1, got -1",
    "label is a word": "label must be a whole number from 0 to 1, got '1'",
    "label is true": "label must be a whole number from 0 to 1, got True",
    "one context": "contexts must be two strings or more",
    "no continuation": "continuation must be a string that is not empty",
    "contexts' label beyond": "label must be a whole number from 0 to 1, got 2",
    "answer is a number": "answer must be a string that is not empty",
    "no answer": "answer must be a string that is not empty",
    "no summary": "summary must be a string that is not empty",
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows(tmp_path, kind):
    good = next((each for each in (CONTEXTS, SUMMARY) if set(each) <= set(BAD[kind])), CHOICES)
    good = ANSWER if kind == "mixed kinds" or "answer" in BAD[kind] else good
    path = write(tmp_path, [good, good, BAD[kind], good])
    with pytest.raises(RSparseError, match=f"row 3: {SAYS.get(kind, 'expected context, choices and label;')}") as caught:
        read_task("made", path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(RSparseError, match="row 1"):
        read_task("made", write(tmp_path, [BAD[kind] if kind != "mixed kinds" else {}]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"context": "a"\n', "line 1: not valid JSON"),
        (json.dumps(CHOICES).encode() + b"\n\n{\n", "line 3: not valid JSON"),
        (b"\n \n", "holds no row"),
        (b"", "holds no row"),
        (b'{"context": "caf\xe9"}', "cannot read task file"),
        (None, "cannot read task file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, says):
    path = tmp_path / "made.jsonl"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(RSparseError, match=says) as caught:
        load_tasks(["made"], tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rouge_by_hand():
    found = rouge("the cat sat on the mat", "the cats lay on a mat")
    assert found == pytest.approx({"rouge1": 4 / 6, "rouge2": 1 / 5, "rougeL": 4 / 6})
    assert rouge("one two three", "three two one") == pytest.approx({"rouge1": 1, "rouge2": 0, "rougeL": 1 / 3})
    assert rouge("one", "") == {"rouge1": 0, "rouge2": 0, "rougeL": 0}
