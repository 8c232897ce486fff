"""One measured model against another, or against an earlier record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsparse.errors import RSparseError
from rsparse.evaluation.measure import Measured, Plan
from rsparse.evaluation.paired import compare_tasks, perplexity_ratio
from rsparse.evaluation.perplexity import Perplexity
from rsparse.evaluation.tasks import TaskScore

SAME = ("data", "seq_len", "max_tokens", "wikitext_join", "task_dir", "limit", "num_fewshot", "chat_template")


def recorded(path: Path, plan: Plan, tasks: Sequence[Any] = ()) -> Measured:
    """What a record of `rsparse eval --json` holds. Raises RSparseError where it is none, or of other
    text or rows than the plan with its loaded tasks."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config, metrics = dict(record["config"]), record["metrics"]
        scores = {name: TaskScore.from_dict(name, entry) for name, entry in metrics.get("tasks", {}).items()}
        text = None
        if "window_nll" in metrics:
            text = Perplexity(metrics["perplexity"], metrics["tokens"], metrics["window_nll"])
    except OSError as error:
        raise RSparseError(f"cannot read record {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RSparseError(f"{path} is not a record of `rsparse eval --json` (missing or wrong: {str(error)[:80]})") from error
    for key, value in plan.config().items():
        if key in SAME and key in config and config[key] != value:
            raise RSparseError(f"record {path} is of {key} {config[key]}, and this run of {value}: they do not pair")
    if scores and tasks and (other := set(scores) ^ {task.task_name for task in tasks}):
        raise RSparseError(f"record {path} has other tasks than this run: {', '.join(sorted(other))} on one side only")
    if not (text and plan.text) and not (scores and tasks):
        raise RSparseError(f"record {path} has nothing in common with this run: measure the same text or tasks on both")
    return Measured(text, scores)


def comparison(a: Measured, b: Measured) -> dict[str, Any]:
    """The record's `against` entry, with `lines` for the terminal. Raises RSparseError where nothing is on both sides."""
    found: dict[str, Any] = {}
    lines: list[str] = []
    if a.text is not None and b.text is not None:
        if a.text.tokens != b.text.tokens or len(a.text.window_nll) != len(b.text.window_nll):
            raise RSparseError(
                f"the two scored {a.text.tokens} and {b.text.tokens} tokens: windows pair only between models of one "
                "tokenizer on the same text and --seq-len"
            )
        ratio = perplexity_ratio(a.text.window_nll, b.text.window_nll)
        found["perplexity"], found["perplexity_ratio"] = b.text.perplexity, ratio.to_dict()
        lines.append(f"perplexity        × {ratio.value:.4f}   (95 %: {ratio.low:.4f} to {ratio.high:.4f}, over windows)")
    if a.tasks and b.tasks:
        tasks = compare_tasks(a.tasks, b.tasks)
        found["tasks"] = tasks
        width = max(len(name) for name in ("mean", *tasks["difference"])) + 2
        for name, entry in tasks["difference"].items():
            lines.append(f"{name:<{width}}{entry['metric']} {_interval(entry)}")
        if tasks["mean_difference"] is not None:
            lines.append(f"{'mean':<{width}}acc {_interval(tasks['mean_difference'])}")
        share = tasks["above_chance_share"]
        if share is not None:
            lines.append(f"accuracy above chance kept: {share['value']:.1%} (95 %: {share['low']:.1%} to {share['high']:.1%})")
    for what, one, two in (("text", a.text, b.text), ("tasks", a.tasks, b.tasks)):
        if bool(one) != bool(two):
            lines.append(f"{what}: only one of the two has them, not compared")
    if not found:
        raise RSparseError("the two have nothing in common to compare: measure the same text or tasks on both")
    return found | {"lines": lines}


def _interval(entry: dict[str, float]) -> str:
    return f"{entry['value']:+.4f} (95 %: {entry['low']:+.4f} to {entry['high']:+.4f})"
