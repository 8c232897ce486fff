"""Searches of several populations: the best by generation as a table, and by evaluations as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsparse.analysis.quality_table import figure, head_lines, row_line
from rsparse.atomic import new_file
from rsparse.errors import RSparseError

Record = dict[str, Any]
MARKERS = "osDv^P*X"
MIN_RATIO = 1.4


def load_records(folder: Path) -> list[Record]:
    """The search records in `folder`, by population. Raises RSparseError for a file that is no record."""
    found = []
    for path in folder.glob("population-*.json"):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["config"]["suite"] == "search":
                found.append(record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RSparseError(f"{path} is not a result record ({error}); move it away") from error
    return sorted(found, key=lambda record: record["config"]["population"])


def markdown(records: Sequence[Record], published: Mapping[int, float] | None = None) -> str:
    """population × generation: the best so far, and what it took. All records are of one folder's settings.

    `published` perplexities by generation stand in a row of their own, below those of a search for perplexity.
    """
    config = records[0]["config"]
    generations = [str(number + 1) for number in range(config["generations"])]
    generations[0] = "generation 1"
    tail = ["candidates", "stopped early", "s a candidate", "s for factors", "s in all", "GB held"]
    head = ["population", "sparse-only", *generations, *tail]
    lines = [f"## Search on {config['model'].removesuffix('.gguf')}", "", _protocol(records), "", *head_lines(head)]
    for record in records:
        metrics = record["metrics"]
        best = [_figure(value, config["objective"]) for value in [metrics["sparse_only_fitness"], *metrics["history"]]]
        cost = [f"{metrics['evaluations']}", f"{metrics['stopped_early']:.0%}", f"{metrics['seconds_per_candidate']:.3g}"]
        cost += [f"{metrics['factors_seconds']:.1f}", f"{metrics['search_seconds']:.0f}"]
        cost.append(f"{metrics['peak_gpu_bytes'] / 1e9:.1f}" if "peak_gpu_bytes" in metrics else "")
        lines.append(row_line([str(record["config"]["population"]), *best, *cost]))
    if published and config["objective"] == "perplexity":
        theirs = [f"{published[number]:.2f}" if number in published else "" for number in range(1, config["generations"] + 1)]
        lines.append(row_line(["published, model not stated", "", *theirs, *[""] * len(tail)]))
    return "\n".join([*lines, ""])


def plot(records: Sequence[Record], path: Path) -> None:
    """The best so far over the candidates evaluated; one line a population, a mark a generation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    draw(axis, records)
    axis.legend(fontsize=8)
    config = records[0]["config"]
    axis.set_title(f"Search on {config['model'].removesuffix('.gguf')}: sparsity {config['sparsity']:.2f}", fontsize=10)
    with new_file(path) as aside:
        figure.savefig(aside, dpi=130, format="png")
    plt.close(figure)


def draw(axis: Any, records: Sequence[Record]) -> None:
    """The lines of `plot` on `axis`."""
    config = records[0]["config"]
    objective = config["objective"]
    for number, record in enumerate(records):
        population, history = record["config"]["population"], record["metrics"]["history"]
        evaluations = [population * (generation + 1) for generation in range(len(history))]
        values = [_value(value, objective) for value in history]
        marker = MARKERS[number % len(MARKERS)]
        axis.plot(evaluations, values, marker=marker, markersize=4, linewidth=1, label=f"population {population}")
    sparse_only = _value(records[0]["metrics"]["sparse_only_fitness"], objective)
    axis.axhline(sparse_only, color="black", linestyle=":", linewidth=1, label="sparse-only")
    axis.set(xscale="log", xlabel="candidates evaluated", ylabel=f"best {objective} so far")
    ticks: list[int] = []
    for tick in sorted(record["config"]["population"] * factor for record in records for factor in (1, config["generations"])):
        if not ticks or tick > MIN_RATIO * ticks[-1]:  # closer ones would stand on each other
            ticks.append(tick)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _value(fitness: float, objective: str) -> float:
    return math.exp(fitness) if objective == "perplexity" else fitness


def _figure(fitness: float, objective: str) -> str:
    return figure(math.exp(fitness), 3) if objective == "perplexity" else f"{fitness:.4f}"


def _protocol(records: Sequence[Record]) -> str:
    config = records[0]["config"]
    what = "perplexity" if config["objective"] == "perplexity" else "KL to dense (nats a token)"
    weights = f"Weights {config['weights_sha']}{', random' if config.get('weights') == 'random' else ''}, {config['dtype']}"
    machines = " and ".join(sorted({record["env"]["gpu"] or record["env"]["cpu"] for record in records}))
    return (
        f"{weights}, on {machines}. Best {what} so far, on the {config['samples']} windows of "
        f"{config['seq_len']} tokens that judged (of {config['calibration']}), at sparsity {config['sparsity']:.0%}; "
        f"criterion {config['criterion']}, fit {config['fit']}, grouping {config['grouping']}, seed {config['seed']}. "
        "Seconds a candidate are the median over those that ran to their end."
    )
