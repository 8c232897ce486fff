"""Speed-up over sparsity, measured and predicted, and tokens a second over length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsparse.analysis.decode_table import Record
from rsparse.atomic import new_file

MARKERS = "osDv^P*X"


def plot(records: Sequence[Record], path: Path) -> None:
    """Left: each model's speed-up over the best dense, and by the bytes read; right: its tokens a second by new tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    lines: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        config = record["config"]
        lines.setdefault((config["model"], config["batch"], config["ranks"], config["new_tokens"]), []).append(record)
    for number, ((model, batch, ranks, _), rows) in enumerate(lines.items()):
        rows = sorted(rows, key=lambda row: row["metrics"]["achieved_sparsity"])
        label = f"{model}, {'recipe' if ranks is None else f'ranks {ranks}'}" + (f", batch {batch}" if batch > 1 else "")
        style = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4, "linewidth": 1, "color": f"C{number % 10}"}
        x = [row["metrics"]["achieved_sparsity"] for row in rows]
        left.plot(x, [row["metrics"]["speedup"] for row in rows], label=label, **style)
        bound = style | {"linestyle": ":", "markerfacecolor": "none"}
        left.plot(x, [row["metrics"]["speedup_by_bytes"] for row in rows], **bound)
        for row in rows:
            lengths = {int(key): each["tokens_per_second"] for key, each in row["metrics"]["by_length"].items()}
            if lengths:
                right.plot(list(lengths), list(lengths.values()), label=f"{label}, {row['config']['sparsity']:.0%}", **style)
    left.axhline(1, color="black", linewidth=0.8)
    left.set(xlabel="achieved sparsity", ylabel="speed-up over the best dense (hollow: by bytes)", xlim=(0, 1))
    left.legend(fontsize=7)
    right.set(xlabel="new tokens", ylabel="tokens a second")
    if right.lines:
        right.set_xscale("log", base=2)
        right.xaxis.set_major_formatter("{x:.0f}")
        right.set_ylim(0, 1.1 * max(max(line.get_ydata()) for line in right.lines))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with new_file(path) as aside:
        figure.savefig(aside, dpi=130, format="png")
    plt.close(figure)
