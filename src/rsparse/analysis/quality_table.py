"""Tables of a quality bench's records."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rsparse.benchmark.settings import SETTINGS_FILE
from rsparse.errors import RSparseError
from rsparse.evaluation.paired import Interval, above_chance_share, mean_accuracy_difference
from rsparse.evaluation.tasks import TaskScore

Record = dict[str, Any]


def load_records(folder: Path) -> list[Record]:
    """Every quality record below `folder`, in order of path. Raises RSparseError for a file that is no record."""
    found = []
    for path in sorted(path for path in folder.glob("*/*.json") if path.name != SETTINGS_FILE):  # of a folder of folders
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            suite = record["config"].get("suite")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise RSparseError(f"{path} is not a result record ({error}); move it away") from error
        if suite == "quality":
            found.append(record)
    return found


def order(record: Record) -> tuple[Any, ...]:
    """By model, then by level, dense first, then by name."""
    config = record["config"]
    return config["model"], config["sparsity"], config["preset"]


def rows_of(records: Iterable[Record]) -> dict[tuple[str, float, str], list[Record]]:
    """Records by (model, level, preset), sorted."""
    rows: dict[tuple[str, float, str], list[Record]] = {}
    for record in sorted(records, key=order):
        rows.setdefault(order(record), []).append(record)
    return rows


def texts_of(records: Iterable[Record]) -> list[tuple[str, str]]:
    """(text, policy) pairs that have a perplexity."""
    found = {(r["config"]["data"], r["config"]["token_policy"]) for r in records if "perplexity" in r["metrics"]}
    return sorted(found)


def task_scores(record: Record) -> dict[str, TaskScore]:
    return {name: TaskScore.from_dict(name, entry) for name, entry in record["metrics"]["tasks"].items()}


def markdown(records: Sequence[Record]) -> str:
    """All tables: for each model perplexity and KL by text, then accuracy over the tasks by policy."""
    parts = []
    for model in sorted({record["config"]["model"] for record in records}):
        mine = [record for record in records if record["config"]["model"] == model]
        parts += [f"## {model.removesuffix('.gguf')}", "", _protocol(mine), "", *perplexity_table(mine), ""]
        if any("tasks" in record["metrics"] for record in mine):
            parts += [*task_table(mine), ""]
    return "\n".join(parts)


def perplexity_table(records: Sequence[Record]) -> list[str]:
    """One model's perplexities, with KL to dense in nats and achieved sparsity as mean over the texts."""
    texts = texts_of(records)
    if not texts:
        return []
    head = ["method", "asked"]
    head += [f"{Path(text).stem}{'' if policy == 'all' else f' ({policy})'}" for text, policy in texts]
    lines = head_lines([*head, "mean KL", "achieved", "MB a token"])
    for (_, level, preset), group in rows_of(records).items():
        by_text = {
            (r["config"].get("data"), r["config"]["token_policy"]): r["metrics"] for r in group if "perplexity" in r["metrics"]
        }
        if by_text:
            cells = [figure(by_text[key]["perplexity"]) if key in by_text else "" for key in texts]
            kl = [m["kl_to_dense"] for m in by_text.values() if "kl_to_dense" in m]
            achieved = statistics.fmean(m["achieved_sparsity"] for m in by_text.values())
            size = statistics.fmean(m["bytes_per_token"] for m in by_text.values())
            tail = [f"{statistics.fmean(kl):.3f}" if kl else "", f"{achieved:.3f}", f"{size / 1e6:.0f}"]
            lines.append(row_line([preset, f"{level:.0%}" if level else "", *cells, *tail]))
    return lines


def task_table(records: Sequence[Record]) -> list[str]:
    """One model's accuracies by task, their mean, its paired difference from dense, and the share above chance that is kept."""
    dense = next((r for r in records if r["config"]["preset"] == "dense" and "tasks" in r["metrics"]), None)
    base = None if dense is None else task_scores(dense)
    names = sorted({name for r in records for name in r["metrics"].get("tasks", {})})
    lines = head_lines(
        ["method", "asked", "policy", *names, "mean", "difference from dense (95 %)", "above chance kept (95 %)"]
    )
    for (_, level, preset), group in rows_of(records).items():
        for record in group:
            if "tasks" not in record["metrics"]:
                continue
            scores = task_scores(record)
            means = {name: score.mean(score.primary) for name, score in scores.items()}
            cells = [f"{means[name]:.3f}" if name in means else "" for name in names]
            cells.append(f"{statistics.fmean(means.values()):.4f}")
            if base is not None and preset != "dense" and set(base) == set(scores):
                difference = mean_accuracy_difference(scores, base)
                cells.append("" if difference is None else _signed(difference))
                cells.append(_share(scores, base))
            else:
                cells += ["", ""]
            policy = "" if preset == "dense" else record["config"]["token_policy"]
            lines.append(row_line([preset, f"{level:.0%}" if level else "", policy, *cells]))
    return lines


def share_of_chance(records: Sequence[Record], dense: Sequence[Record], policy: str) -> Interval | None:
    """What a preset's records keep of the dense ones' accuracy above chance under `policy`; None where it was not run."""
    base = next((r for r in dense if "tasks" in r["metrics"]), None)
    mine = next((r for r in records if "tasks" in r["metrics"] and r["config"]["token_policy"] == policy), None)
    return None if base is None or mine is None else above_chance_share(task_scores(mine), task_scores(base))


def share_cell(records: Sequence[Record], dense: Sequence[Record], policy: str) -> str:
    """`share_of_chance` as a cell of whole percents; empty where it was not run."""
    share = share_of_chance(records, dense, policy)
    return "" if share is None else f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def _signed(found: Interval) -> str:
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _share(scores: dict[str, TaskScore], base: dict[str, TaskScore]) -> str:
    try:
        share = above_chance_share(scores, base)
    except RSparseError:  # no choices, or a dense model that only guesses
        return ""
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def _protocol(records: Sequence[Record]) -> str:
    config = records[0]["config"]
    calibrated = next((r["config"]["calibration"] for r in records if r["config"].get("calibration")), None)
    words = [f"Weights {config['weights_sha']}, {config['dtype']}."]
    if any("perplexity" in r["metrics"] for r in records):
        seq_len = next(r["config"]["seq_len"] for r in records if "perplexity" in r["metrics"])
        policies = sorted({r["config"]["token_policy"] for r in records if "perplexity" in r["metrics"]})
        words.append(f"Perplexity over windows of {seq_len} tokens, policy {' and '.join(policies)}.")
    if calibrated:
        words.append(f"Calibrated on {calibrated}.")
    return " ".join(words)


def figure(perplexity: float, digits: int = 2) -> str:
    """A perplexity as a table has it; one beyond all use by its order of magnitude."""
    return f"{perplexity:.{digits}f}" if perplexity < 10_000 else f"{perplexity:.0e}".replace("e+0", "e")


def head_lines(cells: Sequence[str]) -> list[str]:
    """A Markdown table's first two lines."""
    return [row_line(cells), "|---" * len(cells) + "|"]


def row_line(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
