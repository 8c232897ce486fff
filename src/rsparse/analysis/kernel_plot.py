"""Speed-up over the share of the bytes that is read, a panel a unit, and a roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsparse.analysis.kernel_table import UNITS, Record, Row, measured
from rsparse.atomic import new_file

MARKERS = "osDv^P*X"
PANELS, SIZE = (2, 3), (13, 7.6)  # SIZE in inches
TITLES = {"qkv": "q|k|v", "o": "o", "gate_up": "gate|up", "down": "down", "mlp": "MLP block"}


def plot(records: Sequence[Record], path: Path) -> None:
    """Left five panels: speed-up over the best dense by the share of its bytes that is read. Last: TB/s by bytes of a call."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(*PANELS, figsize=SIZE, layout="constrained")
    draw(axes, records)
    with new_file(path) as aside:
        figure.savefig(aside, dpi=120, format="png")
    plt.close(figure)


def draw(axes: Any, records: Sequence[Record]) -> None:
    """The same on `axes`, PANELS of them."""
    for axis, unit in zip(axes.flat, UNITS, strict=False):
        for number, (label, rows) in enumerate(_lines(records)):
            _speedups(axis, [row for row in rows if row["unit"] == unit], label, number)
        _bound(axis)
        axis.set(title=TITLES[unit], xlabel="share of the dense bytes that is read", ylabel="speed-up over the best dense")
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    _roofline(axes[1, 2], records)


def _lines(records: Sequence[Record]) -> list[tuple[str, list[Row]]]:
    """Rows by model, dtype and batch."""
    found = []
    for record in records:
        for batch in sorted({row["batch"] for row in measured(record)}):
            label = f"{record['config']['model']}, {record['config']['dtype']}" + (f", batch {batch}" if batch > 1 else "")
            found.append((label, measured(record, batch)))
    return found


def _speedups(axis: Any, rows: Sequence[Row], label: str, number: int) -> None:
    for ranks, line in (("none", "-"), ("recipe", "--")):
        chosen = sorted((row for row in rows if row["ranks"] == ranks), key=lambda row: row["bytes_read"])
        if chosen:
            x = [row["bytes_read"] / row["dense_bytes"] for row in chosen]
            many = len(chosen) > 2  # a line between two points would cross the bound
            axis.plot(
                x, [row["speedup"] for row in chosen], linestyle=line if many else "none",
                label=label + ("" if ranks == "none" else ", low rank"), marker=MARKERS[number % len(MARKERS)], markersize=4,
                linewidth=1, color=f"C{number % 10}", markerfacecolor=None if ranks == "none" else "none",
            )  # fmt: skip


def _bound(axis: Any) -> None:
    shares = [0.05 + 0.01 * step for step in range(96)]
    axis.plot(shares, [1 / share for share in shares], ":", color="black", linewidth=1, label="by bytes")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xlim(0, 1.05)
    highest = max((y for line in axis.lines if line.get_linestyle() != ":" for y in line.get_ydata()), default=1.0)
    axis.set_ylim(0, 1.15 * max(3.0, highest))


def _roofline(axis: Any, records: Sequence[Record]) -> None:
    dense: list[tuple[float, float]] = []
    for number, (_, rows) in enumerate(_lines(records)):
        x, y = [row["bytes_read"] / 1e6 for row in rows], [row["bytes_per_second"] / 1e12 for row in rows]
        axis.plot(x, y, MARKERS[number % len(MARKERS)], markersize=4, color=f"C{number % 10}")
        for row in rows:
            us = row["dense"][row["dense_best"]]["us"]
            dense.append((row["dense_bytes"] / 1e6, row["dense_bytes"] / us / 1e6))
    if dense:
        axis.plot(*zip(*dense, strict=True), "x", markersize=4, color="grey", label="best dense")
    copies = [row["copy_bytes_per_second"] for _, rows in _lines(records) for row in rows if row["copy_bytes_per_second"]]
    for bandwidth in sorted({round(each / 1e12, 2) for each in copies}):
        axis.axhline(bandwidth, color="black", linewidth=1, label=f"copy: {bandwidth:.2f} TB/s")
    axis.set(title="roofline", xlabel="MB that a call reads", ylabel="TB/s")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
