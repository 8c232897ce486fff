"""Tasks from .jsonl files, as the harness's own task objects; nothing is fetched or cached.

A row is a JSON object, and its keys say what it is:
  multiple choice      context, choices, label: log p of " " + choice after the context
  partial evaluation   contexts, continuation, label: log p of one continuation after each context (WinoGrande)
  exact match          context, answer: the last number in the text generated, where the answer is one (GSM8K)
  summary              context, summary: ROUGE-1, 2 and L of the text generated
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rsparse.errors import RSparseError

STOP = ["\n\n", "Question:"]
NUMBER = "(-?[$0-9.,]{2,})|(-?[0-9]+)"  # the harness's own, in gsm8k's flexible-extract


def task_files(folder: str | Path, names: list[str] | None = None) -> dict[str, Path]:
    """Files by task name, in order; all of the folder's or those named. Raises RSparseError for one that is not there."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RSparseError(f"task folder {folder} does not exist")
    found = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not found:
        raise RSparseError(f"task folder {folder} holds no .jsonl file")
    if names is None:
        return found
    if missing := [name for name in names if name not in found]:
        raise RSparseError(f"task folder {folder} has no {missing[0]}.jsonl; it has {', '.join(found)}")
    return {name: found[name] for name in names}


def read_task(name: str, path: Path) -> Any:
    """The harness's ConfigurableTask of one file. Raises RSparseError where a row is not as above."""
    from lm_eval.api.task import ConfigurableTask

    rows = _rows(path)
    kind = _kind(rows[0])
    for number, row in enumerate(rows, 1):
        if why := _fault(row, kind):
            raise RSparseError(f"{path}, row {number}: {why}")
    assert kind is not None
    config = {"task": name, "test_split": "test", "num_fewshot": 0, "metadata": {"version": 1}, **_CONFIGURE[kind](rows)}
    return ConfigurableTask(config={**config, "custom_dataset": _dataset(rows, kind)})


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RSparseError(f"cannot read task file {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RSparseError(f"{path}, line {number}: not valid JSON ({error})") from None
            rows.append(row)
    if not rows:
        raise RSparseError(f"task file {path} holds no row")
    return rows


KINDS = {
    "choices": ("context", "choices", "label"),
    "contexts": ("contexts", "continuation", "label"),
    "answer": ("context", "answer"),
    "summary": ("context", "summary"),
}


def _kind(row: Any) -> str | None:
    """What a row's keys say it is."""
    return next((kind for kind, keys in KINDS.items() if isinstance(row, dict) and all(key in row for key in keys)), None)


def _fault(row: Any, kind: str | None) -> str | None:
    """What is wrong with a row that should be of `kind`, the first row's; None where nothing is."""
    if kind is None or _kind(row) != kind:
        known = "; or ".join(", ".join(keys[:-1]) + f" and {keys[-1]}" for keys in KINDS.values())
        return f"expected {known}, the same in every row"
    for key in KINDS[kind]:
        value = row[key]
        if key in ("choices", "contexts"):
            if not (isinstance(value, list) and len(value) > 1 and all(isinstance(each, str) and each for each in value)):
                return f"{key} must be two strings or more, none of them empty"
        elif key == "label":
            count = len(row[kind])
            if type(value) is not int or not 0 <= value < count:
                return f"label must be a whole number from 0 to {count - 1}, got {value!r}"
        elif not isinstance(value, str) or (not value and key != "context"):
            return f"{key} must be a string that is not empty"
    return None


def _dataset(rows: list[dict[str, Any]], kind: str) -> Callable[..., Any]:
    from datasets import Dataset

    # Only what a task reads: a column must be of one type, which an `id` need not be.
    keys = _KEYS[kind]
    table = Dataset.from_list([{key: row[key] for key in keys} for row in rows])
    return lambda **_: {"test": table}


def _mean(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in names]


def _choices(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": lambda row: row["context"],
        "doc_to_choice": lambda row: row["choices"],
        "doc_to_target": lambda row: row["label"],
        "metric_list": _mean("acc", "acc_norm"),
    }


def _contexts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": lambda row: row["label"],
        "doc_to_choice": lambda row: row["contexts"],
        "doc_to_target": lambda row: row["continuation"],
        "target_delimiter": "",
        "metric_list": _mean("acc"),
    }


def _generation(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_text": lambda row: row["context"],
        "generation_kwargs": {"until": list(STOP), "do_sample": False},
    }


def _answer(rows: list[dict[str, Any]]) -> dict[str, Any]:
    config = _generation(rows) | {"doc_to_target": lambda row: row["answer"].rpartition("####")[2].strip()}
    ignored = {"regexes_to_ignore": [",", "\\$", "\\.$"], "ignore_case": True}
    if all(_is_number(row["answer"].rpartition("####")[2]) for row in rows):
        extract = [{"function": "regex", "group_select": -1, "regex_pattern": NUMBER}, {"function": "take_first"}]
        config["filter_list"] = [{"name": "last-number", "filter": extract}]
    else:
        strip = [{"function": "remove_whitespace"}, {"function": "take_first"}]
        config["filter_list"] = [{"name": "whole", "filter": strip}]
    return config | {"metric_list": [metric | ignored for metric in _mean("exact_match")]}


def _is_number(text: str) -> bool:
    try:
        float(text.strip().replace(",", "").replace("$", ""))
    except ValueError:
        return False
    return True


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return _generation(rows) | {
        "doc_to_target": lambda row: row["summary"],
        "process_results": lambda row, results: rouge(row["summary"], results[0]),
        "metric_list": _mean("rouge1", "rouge2", "rougeL"),
    }


def rouge(reference: str, text: str) -> dict[str, float]:
    """F-measures of ROUGE-1, 2 and L with stemming, by the package rouge-score."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(reference, text)
    return {name: float(score.fmeasure) for name, score in scores.items()}


_KEYS = {
    "choices": ("context", "choices", "label"),
    "contexts": ("contexts", "continuation", "label"),
    "answer": ("context", "answer"),
    "summary": ("context", "summary"),
}
_CONFIGURE = {"choices": _choices, "contexts": _contexts, "answer": _answer, "summary": _summary}
