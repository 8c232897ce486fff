"""What `rsparse eval` measures of one model: perplexity of a text, and tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rsparse.calibration.text import TextSource, wikitext_join
from rsparse.calibration.windows import make_windows
from rsparse.errors import RSparseError
from rsparse.evaluation.describe import short
from rsparse.evaluation.perplexity import Perplexity, evaluate
from rsparse.evaluation.tasks import TaskScore, check_chat, check_fewshot, load_tasks, run_tasks
from rsparse.token_policy import TokenPolicy

EVERY_TOKEN = 1 << 30  # as sinks


@dataclass(frozen=True)
class Plan:
    """What to measure, and how. Raises RSparseError where that cannot be."""

    token_policy: TokenPolicy
    text: str | None = None
    seq_len: int = 512
    max_tokens: int | None = None
    wikitext_join: bool = False
    against_dense: bool = True
    tasks: tuple[str, ...] | None = None
    task_dir: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    chat: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < self.seq_len:
            raise RSparseError(f"--max-tokens {self.max_tokens} is less than one window of --seq-len {self.seq_len}")
        if self.wikitext_join and not (self.text or "").endswith(".txt"):
            raise RSparseError("--wikitext-join is for a .txt file with WikiText's lines")
        for name in ("limit", "num_fewshot"):
            value = getattr(self, name)
            if value is not None and value < (1 if name == "limit" else 0):
                raise RSparseError(f"--{name.replace('_', '-')} must be {1 if name == 'limit' else 0} or more, got {value}")
        check_fewshot(self.num_fewshot, self.task_dir)

    @property
    def has_tasks(self) -> bool:
        return self.tasks is not None or self.task_dir is not None

    def load_tasks(self) -> list[Any]:
        """The harness's task objects, for `measure`. Raises RSparseError for one that cannot be had."""
        return load_tasks(self.tasks, self.task_dir) if self.has_tasks else []

    def dense(self) -> Plan:
        """The same tokens scored, all of them dense."""
        policy = dataclasses.replace(self.token_policy, sink_tokens=EVERY_TOKEN)
        return dataclasses.replace(self, token_policy=policy, against_dense=False)

    def config(self) -> dict[str, Any]:
        """The record's config fields."""
        found: dict[str, Any] = {"token_policy": str(self.token_policy), "sink_tokens": self.token_policy.sink_tokens}
        if self.text is not None:
            found |= {"data": short(self.text), "seq_len": self.seq_len, "max_tokens": self.max_tokens}
            found["wikitext_join"] = self.wikitext_join
        if self.has_tasks:
            found |= {"task_dir": self.task_dir and self.task_dir.name, "limit": self.limit}
            found |= {"num_fewshot": self.num_fewshot, "chat_template": self.chat}
        return found


@dataclass(frozen=True)
class Measured:
    """What came out: either part is missing where the plan does not ask for it."""

    text: Perplexity | None = None
    tasks: dict[str, TaskScore] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        found = {} if self.text is None else self.text.metrics()
        return found | ({"tasks": {name: score.to_dict() for name, score in self.tasks.items()}} if self.tasks else {})

    def lines(self, plan: Plan) -> list[str]:
        """For the terminal."""
        return [*_text_lines(self.text, plan), *_task_lines(self.tasks, plan)]


def measure(model: Any, tokenizer: Any, plan: Plan, tasks: Sequence[Any]) -> Measured:
    """Run the plan on one model, with the tasks that it has loaded."""
    check_chat(tokenizer, plan.chat and plan.has_tasks)
    text = None
    if plan.text is not None:
        windows = text_windows(plan.text, tokenizer, plan.seq_len, plan.max_tokens, wikitext=plan.wikitext_join)
        text = evaluate(model, windows, plan.token_policy, against_dense=plan.against_dense)
    if not tasks:
        return Measured(text)
    from rsparse.evaluation.harness_lm import HarnessLM

    scores = run_tasks(
        HarnessLM(model, tokenizer), tasks, plan.token_policy,
        limit=plan.limit, num_fewshot=plan.num_fewshot, chat=plan.chat,
    )  # fmt: skip
    return Measured(text, scores)


def text_windows(text: str, tokenizer: Any, seq_len: int, max_tokens: int | None = None, *, wikitext: bool = False) -> Tensor:
    """Windows [n, seq_len] of a text by name; `wikitext` joins its lines first, as the usual protocol does."""
    documents = TextSource(text).documents()
    documents = map(wikitext_join, documents) if wikitext else documents
    count = None if max_tokens is None else max_tokens // seq_len
    return make_windows(documents, tokenizer, seq_len, max_windows=count, source=text)


def _text_lines(result: Perplexity | None, plan: Plan) -> list[str]:
    if result is None or plan.text is None:
        return []
    lines = [f"perplexity        {result.perplexity:.3f}   ({result.tokens} tokens of {short(plan.text)}, {plan.token_policy})"]
    if result.dense_perplexity is not None:
        lines.append(f"dense             {result.dense_perplexity:.3f}   (the same weights, every token dense)")
        lines.append(f"KL to dense       {result.kl_to_dense:.4f} nats   token agreement {result.token_agreement:.1%}")
    if result.sparsity_by_unit is not None:
        share = result.bytes_per_token / result.dense_bytes_per_token
        rows = f"on {result.sparse_row_share:.1%} of tokens"
        lines.append(f"achieved sparsity {result.achieved_sparsity:.4f} of the blocks' linears, {rows}")
        lines.append(
            f"bytes per token   {result.bytes_per_token:,} of {result.dense_bytes_per_token:,} ({share:.1%}, head included)"
        )
    return lines


def _task_lines(tasks: dict[str, TaskScore], plan: Plan) -> list[str]:
    if not tasks:
        return []
    width = max(len(name) for name in ("task", *tasks)) + 2
    lines = [f"{'task':<{width}}{'n':>6}   scores ({plan.token_policy})"]
    for name, score in tasks.items():
        means = "  ".join(f"{metric} {score.mean(metric):.4f}" for metric in score.rows)
        error = score.to_dict()["stderr"]
        chance = "" if score.chance is None else f"   chance {score.chance:.3f}"
        lines.append(f"{name:<{width}}{len(score.rows[score.primary]):>6}   {means}  ± {error or 0:.4f}{chance}")
    return lines
