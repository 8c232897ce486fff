"""Run tasks through lm-evaluation-harness, and keep every row's score for paired comparisons."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsparse.errors import RSparseError
from rsparse.evaluation.task_files import read_task, task_files
from rsparse.token_policy import TokenPolicy

FEWSHOT_SEED = 1234  # the harness's
PRIMARY = ("acc", "exact_match", "rougeL")


@dataclass(frozen=True)
class TaskScore:
    """One task. `rows`: each row's score by metric; `chance`: what guessing gives in `acc`, None where there is no choice."""

    name: str
    rows: dict[str, list[float]]
    chance: float | None

    @property
    def primary(self) -> str:
        """The metric that comparisons are about: acc where there is one."""
        return next((name for name in PRIMARY if name in self.rows), next(iter(self.rows)))

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.rows[metric])

    def to_dict(self) -> dict[str, Any]:
        """The record's entry: means, the primary metric's standard error, n, chance, and rows (0/1 ones as a string)."""
        scores = self.rows[self.primary]
        n = len(scores)
        found: dict[str, Any] = {name: round(self.mean(name), 6) for name in self.rows}
        found["stderr"] = round(statistics.stdev(scores) / math.sqrt(n), 6) if n > 1 else None
        found["n"] = n
        if self.chance is not None:
            found["chance"] = self.chance
        return found | {"rows": {name: _packed(values) for name, values in self.rows.items()}}

    @classmethod
    def from_dict(cls, name: str, data: dict[str, Any]) -> TaskScore:
        """Inverse of `to_dict`, for a record read back."""
        rows = {
            metric: [float(digit) for digit in values] if isinstance(values, str) else list(map(float, values))
            for metric, values in data["rows"].items()
        }
        if not rows or len(set(map(len, rows.values()))) != 1:
            raise ValueError(f"task {name} has no rows, or not as many of each metric")
        return cls(name, rows, data.get("chance"))


def _packed(values: Sequence[float]) -> str | list[float]:
    if all(value in (0, 1) for value in values):
        return "".join(str(int(value)) for value in values)
    return [round(value, 4) for value in values]


def load_tasks(names: Sequence[str] | None, folder: str | Path | None = None) -> list[Any]:
    """The harness's task objects: from a folder of .jsonl files (all of them without `names`), else by the harness's own
    names, whose data come from the Hub. Raises RSparseError where a task does not exist or its data cannot be had."""
    _check_harness()
    if folder is not None:
        files = task_files(folder, list(names) if names else None)
        with _quiet():
            return [read_task(name, path) for name, path in files.items()]
    from lm_eval.tasks import TaskManager

    with _quiet():
        manager = TaskManager()
        if unknown := [name for name in names or [] if not manager.match_tasks([name])]:
            raise RSparseError(f"lm-evaluation-harness has no task {unknown[0]!r}; `lm-eval ls tasks` lists them")
        try:
            loaded = manager.load(list(names or []))
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RSparseError(
                f"cannot load task {', '.join(names or [])} ({reason[:200]}); its data come from the Hub: "
                "name a folder of .jsonl files with --task-dir to work without it"
            ) from error
    return list(loaded["tasks"].values())


def check_fewshot(num_fewshot: int | None, task_dir: Path | None) -> None:
    """Raises RSparseError where worked examples are asked of tasks that have none to take."""
    if num_fewshot and task_dir is not None:
        raise RSparseError("--num-fewshot is for the harness's own tasks; write examples into the contexts of --task-dir")


def run_tasks(
    lm: Any,
    tasks: Sequence[Any],
    token_policy: TokenPolicy | None = None,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
) -> dict[str, TaskScore]:
    """Scores by task name of a HarnessLM, as the harness finds them; `limit` takes the first rows of each."""
    import lm_eval

    check_chat(lm.tokenizer, chat)
    lm.token_policy = token_policy or TokenPolicy()
    for task in tasks:
        # What the harness's simple_evaluate does, which reads 13,000 task files and calls pip list besides (10 s).
        given = task.get_config("num_fewshot")
        if given is None or (num_fewshot is not None and given != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    with _quiet():
        found = lm_eval.evaluate(
            lm=lm,
            task_dict={"tasks": {task.task_name: task for task in tasks}, "groups": {}, "group_map": {}},
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            bootstrap_iters=0,
            log_samples=True,
        )
    assert found is not None
    return {name: _score(name, samples) for name, samples in found["samples"].items()}


def _score(name: str, samples: list[dict[str, Any]]) -> TaskScore:
    """From the harness's samples: one for each row and filter."""
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    rows: dict[str, list[float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(sample[metric], (int, float)):
                key = metric if len(filters) == 1 else f"{metric},{sample['filter']}"
                rows.setdefault(key, []).append(float(sample[metric]))
    if not rows:
        raise RSparseError(f"task {name} scores no single row (its metric is over the whole), which rsparse cannot compare")
    choices = [len(sample["arguments"]) for sample in samples if sample["filter"] == filters[0]]
    return TaskScore(name, rows, statistics.fmean(1 / n for n in choices) if "acc" in rows and min(choices) > 1 else None)


def check_chat(tokenizer: Any, chat: bool) -> None:
    """Raises RSparseError where the chat template is asked for that the tokenizer does not have."""
    if chat and not tokenizer.chat_template:
        raise RSparseError("this model's tokenizer has no chat template; leave out --chat-template")


def _check_harness() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise RSparseError(f"tasks need lm-evaluation-harness ({error}): pip install -e '.[tasks]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log lines, what its tasks print, and a bar for each: rsparse shows its own progress."""
    import lm_eval.api.task as harness_task
    from datasets.utils import logging as datasets_logging

    logger = logging.getLogger("lm_eval")
    level, bar, bars = logger.level, harness_task.tqdm, datasets_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets_logging.disable_progress_bar()
    harness_task.tqdm = functools.partial(bar, disable=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets_logging.enable_progress_bar()
        harness_task.tqdm = bar
