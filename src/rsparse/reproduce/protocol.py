"""What a table's records have in common: sentences for a reader, and the configuration for its record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rsparse.evaluation.describe import short
from rsparse.reproduce.results import Results


def protocol(results: Results) -> list[str]:
    """Sentences: what is measured, on what."""
    configs = [(record["config"], record["env"]) for record in _records(results)]
    words = []
    if configs:
        config = configs[0][0]
        devices = sorted({env["gpu"] or env["cpu"] for _, env in configs})
        words.append(f"{config['model'].removesuffix('.gguf')}, {config['dtype']}, on {' and '.join(devices)}.")
    if calibrations := dict.fromkeys(config["calibration"] for config, _ in configs if config.get("calibration")):
        words.append(
            f"Calibrated on {', or on '.join(calibrations)}; thresholds are solved on the same text, all tokens sparse."
        )
    words.append("`asked` and `achieved` are shares of the weights of all blocks' linears that a sparse row does not read.")
    if any(results.has_tasks(line) for line in results.lines):
        words.append(_rows_said(results))
    if lengths := {config["seq_len"] for config, _ in configs if "seq_len" in config}:
        words.append(f"Perplexities are over windows of {lengths.pop()} tokens.")
    return [word for word in [*words, results.table.note] if word]


def config_of(results: Results) -> dict[str, Any]:
    """For the record: what the table's records have in common."""
    known: dict[str, Any] = next((record["config"] for record in _records(results)), {})
    calibrations = [record["config"]["calibration"] for record in _records(results) if record["config"].get("calibration")]
    found = {name: known.get(name) for name in ("weights_sha", "dtype")} | {"calibration": next(iter(calibrations), None)}
    policies = [str(policy) for policy in results.request.policies]
    return found | {"model": short(results.request.model), "token_policy": policies, "limit": _limit(results)}


def _rows_said(results: Results) -> str:
    """How many rows accuracies are over; a task's file may be a part of the published set."""
    scores = [each for line in results.lines for policy in results.request.policies if (each := results.scores(line, policy))]
    if not scores:
        return ""
    counts = sorted({len(score.rows[score.primary]) for each in scores for score in each.values()})
    rows = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    part = "the first of its file" if _limit(results) else "all that its file has"
    spread = any("HS" in each and each["HS"].name == "hellaswag_spread" for each in scores)
    return f"Accuracies are over {rows} rows of each task, {part}{'; HS is `hellaswag_spread`' if spread else ''}."


def _limit(results: Results) -> int | None:
    """Rows of each task, None for all."""
    return next((record["config"]["limit"] for record in _records(results) if "limit" in record["config"]), None)


def _records(results: Results) -> Iterator[dict[str, Any]]:
    for line in results.lines:
        for policy in results.request.policies:
            for text in [*results.texts(line), *([None] if results.has_tasks(line) else [])]:
                record = results.record(line, policy, text)
                if record is not None and "refused" not in record["metrics"]:
                    yield record
