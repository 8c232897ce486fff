"""Quality over bytes read, a panel for each model and text."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsparse.atomic import new_file

MARKERS = "osDv^P*Xh<>"
LEAST_WIDTH = 0.05  # of the bytes: methods at one level stand together
POOR = 3.0  # perplexities beyond so many times dense are cut off at the top


def plot(records: Sequence[dict[str, Any]], path: Path, *, policy: str | None = None) -> None:
    """Draw perplexity over the share of bytes that a token reads; one line a method, dashed where something was fitted by
    gradient. Methods that are cut off everywhere have no line. Nothing where there is no perplexity."""
    found = [r for r in records if "perplexity" in r["metrics"]]
    policies = sorted({r["config"]["token_policy"] for r in found})
    if not found:
        return
    policy = policy or ("all" if "all" in policies else policies[0])
    found = [r for r in found if r["config"]["token_policy"] == policy]
    models = sorted({r["config"]["model"] for r in found})
    texts = sorted({r["config"]["data"] for r in found})
    presets = shown(found)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(models), len(texts), figsize=(3.4 * len(texts) + 0.6, 3.0 * len(models) + 1.0), layout="constrained", squeeze=False
    )
    for row, model in zip(axes, models, strict=True):
        for axis, text in zip(row, texts, strict=True):
            here = [r for r in found if (r["config"]["model"], r["config"]["data"]) == (model, text)]
            if here:
                panel(axis, here, presets)
            else:
                axis.set_axis_off()
            axis.set_title(f"{model.removesuffix('.gguf')}, {Path(text).stem}", fontsize=9)
        row[0].set_ylabel("perplexity")
    for axis in axes[-1]:
        axis.set_xlabel("bytes a token reads, share of dense")
    entries = dict(reversed([pair[::-1] for axis in axes.flat for pair in zip(*axis.get_legend_handles_labels(), strict=True)]))
    figure.legend(
        [entries[name] for name in sorted(entries)],
        sorted(entries),
        loc="outside lower center",
        ncols=min(7, 2 * len(texts)),
        fontsize=8,
    )
    dashed = "; dashed: compensated" if any(r["config"].get("compensation") for r in found) else ""
    figure.suptitle(f"Quality over bytes read, token policy {policy}{dashed}", fontsize=10)
    with new_file(path) as aside:
        figure.savefig(aside, dpi=110, format="png")
    plt.close(figure)


def shown(records: Sequence[dict[str, Any]]) -> list[str]:
    """Presets but the dense one that are not cut off in every panel."""

    def place(record: dict[str, Any]) -> tuple[str, str]:
        return record["config"]["model"], record["config"]["data"]

    dense = {place(r): r["metrics"]["perplexity"] for r in records if r["config"]["preset"] == "dense"}
    seen = {r["config"]["preset"] for r in records if r["metrics"]["perplexity"] <= POOR * dense.get(place(r), math.inf)}
    return sorted(seen - {"dense"})


@functools.cache
def _colors() -> list[Any]:
    """The ten of every plot, then a lighter one of each."""
    from matplotlib import colormaps

    shades = list(colormaps["tab20"](range(20)))
    return [*shades[::2], *shades[1::2]]


def panel(axis: Any, records: Sequence[dict[str, Any]], presets: Sequence[str]) -> None:
    """One model and text on `axis`."""
    colors = _colors()
    dense = next((r["metrics"]["perplexity"] for r in records if r["config"]["preset"] == "dense"), None)
    seen: list[float] = []
    shares: list[float] = []
    for number, preset in enumerate(presets):
        mine = sorted((r for r in records if r["config"]["preset"] == preset), key=lambda r: r["config"]["sparsity"])
        share = [r["metrics"]["bytes_per_token"] / r["metrics"]["dense_bytes_per_token"] for r in mine]
        values = [r["metrics"]["perplexity"] for r in mine]
        if not mine:
            continue
        fitted = any(r["config"].get("compensation") for r in mine)
        axis.plot(
            share, values, marker=MARKERS[number % len(MARKERS)], markersize=4, linewidth=1, label=preset,
            color=colors[number % len(colors)], linestyle="--" if fitted else "-",
        )  # fmt: skip
        seen += values
        shares += share
    shares = shares or [1.0]
    middle, half = (min(shares) + max(shares)) / 2, max(LEAST_WIDTH, max(shares) - min(shares)) * 0.55
    axis.set_xlim(middle - half, middle + half)
    if dense is not None:
        axis.axhline(dense, color="black", linestyle=":", linewidth=1, label="dense")
        seen.append(dense)
    low = min(seen) * 0.95
    high = min(max(seen) * 1.05, (dense or min(seen)) * POOR)
    axis.set(yscale="log", ylim=(low, high))
    ticks = [round(low * (high / low) ** (i / 4), 0 if low > 20 else 1) for i in range(5)]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
