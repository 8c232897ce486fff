"""Speed-up over sparsity, measured and predicted, and tokens a second over length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsparse.analysis.decode_table import Record
from rsparse.atomic import new_file

MARKERS = "osDv^P*X"


def plot(records: Sequence[Record], path: Path, lengths: Sequence[Record] = ()) -> None:
    """Left: each model's speed-up over the best dense, and by the bytes read; right: tokens a second by new tokens, sparse and
    dense, of `lengths`, or without them of the records that have most new tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    _speedups(left, records)
    longest = max(row["config"]["new_tokens"] for row in records)
    _rates(right, lengths or [row for row in records if row["config"]["new_tokens"] == longest])
    left.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))  # beside the many lines, not over them
    if right.lines:
        right.legend(fontsize=7)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with new_file(path) as aside:
        figure.savefig(aside, dpi=130, format="png")
    plt.close(figure)


def _speedups(axis: Any, records: Sequence[Record]) -> None:
    lines: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        config = record["config"]
        lines.setdefault((config["model"], config["batch"], config["ranks"], config["new_tokens"]), []).append(record)
    for number, rows in enumerate(lines.values()):
        rows = sorted(rows, key=lambda row: row["metrics"]["achieved_sparsity"])
        style = _style(number)
        x = [row["metrics"]["achieved_sparsity"] for row in rows]
        axis.plot(x, [row["metrics"]["speedup"] for row in rows], label=_label(rows[0]), **style)
        bound = style | {"linestyle": ":", "markerfacecolor": "none"}
        axis.plot(x, [row["metrics"]["speedup_by_bytes"] for row in rows], **bound)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(xlabel="achieved sparsity", ylabel="speed-up over the best dense (hollow: by bytes)")


def _rates(axis: Any, records: Sequence[Record]) -> None:
    for number, row in enumerate(records):
        metrics, style = row["metrics"], _style(number)
        dense = metrics["dense"][metrics["dense_best"]]["by_length"]
        for found, what in ((metrics["by_length"], f"{row['config']['sparsity']:.0%}"), (dense, "dense")):
            rates = {int(key): each["tokens_per_second"] for key, each in found.items()}
            hollow = {"linestyle": ":", "markerfacecolor": "none"} if what == "dense" else {}
            if rates:
                axis.plot(list(rates), list(rates.values()), label=f"{_label(row)}, {what}", **style | hollow)
    axis.set(xlabel="new tokens", ylabel="tokens a second")
    if axis.lines:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.set_ylim(0, 1.1 * max(max(line.get_ydata()) for line in axis.lines))


def _label(row: Record) -> str:
    config = row["config"]
    ranks = "recipe" if config["ranks"] is None else f"ranks {config['ranks']}"
    return f"{config['model']}, {ranks}" + (f", batch {config['batch']}" if config["batch"] > 1 else "")


def _style(number: int) -> dict[str, Any]:
    return {"marker": MARKERS[number % len(MARKERS)], "markersize": 4, "linewidth": 1, "color": f"C{number % 10}"}
