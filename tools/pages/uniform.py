"""Uniform recipes of R-Sparse on one model, by fit, score and grouping: the second part of docs/results.md."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pages.folders import TEXTS
from rsparse.analysis.quality_table import head_lines, row_line

SKETCH_WINDOWS = 48


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Cell name → text → record."""
    cells: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        text = record["config"]["data"]
        cells.setdefault(path.stem.removesuffix(f"-{Path(text).stem}"), {})[text] = record
    return cells


def section(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Lines, of what `load` returns."""
    lines = ["## Uniform recipes of R-Sparse: fit, score, grouping", "", protocol(cells), ""]
    for level in sorted({level_of(name) for name in cells} - {0.0}):
        names = ["dense", *(name for name in cells if level_of(name) == level)]
        lines += [f"### {level:.0%} asked", "", *table(cells, sorted(names, key=order), first_windows=level == 0.5), ""]
    return lines


def label(record: dict[str, Any]) -> str:
    config = record["config"]
    if config["method"] == "dense":
        return "dense"
    scored = config["criterion"][0].replace("_", " ")
    if config["method"] == "sparse_only":
        return f"sparse-only, {scored}"
    fit = {"svd": "plain SVD", "dropped": "fitted"}[config["fit"]]
    grouped = "" if config["grouping"] == "linear" else f", grouped, factors {'stacked' if config['stacked'] else 'per linear'}"
    return f"R-Sparse, rho {config['rho'][0]:g}, {fit}, {scored}{grouped}"


def level_of(name: str) -> float:
    return 0.0 if name == "dense" else float(name[1:].partition("-")[0])


def table(cells: dict[str, dict[str, Any]], names: list[str], *, first_windows: bool) -> list[str]:
    head = ["", *(f"{title} perplexity" for title in TEXTS.values()), *(f"KL, {title}" for title in TEXTS.values())]
    head += [f"achieved sparsity, {title}" for title in TEXTS.values()] + ["MB a token"]
    if first_windows:
        head += [f"{title}, first {SKETCH_WINDOWS} windows" for title in TEXTS.values()]
    rows = head_lines(head)
    for name in names:
        records = [cells[name][text] for text in TEXTS]
        metrics = [record["metrics"] for record in records]
        row = [label(records[0]), *(f"{m['perplexity']:.2f}" for m in metrics)]
        row += [f"{m['kl_to_dense']:.3f}" if "kl_to_dense" in m else "" for m in metrics]
        row += [f"{m['achieved_sparsity']:.3f}" for m in metrics]
        row.append(f"{max(m['bytes_per_token'] for m in metrics) / 1e6:.0f}")
        if first_windows:
            row += [f"{first_perplexity(m):.1f}" for m in metrics]
        rows.append(row_line(row))
    return rows


def first_perplexity(metrics: dict[str, Any]) -> float:
    nll = metrics["window_nll"][:SKETCH_WINDOWS]
    return math.exp(sum(nll) / len(nll))


def order(name: str) -> tuple[int, str]:
    places = ("dense", "sparse_only", "rho0.98", "rho0.95", "rho0.9")
    return next((i for i, place in enumerate(places) if place in name), 9), name


def protocol(cells: dict[str, dict[str, Any]]) -> str:
    record = cells["dense"]["wikitext2-test.txt"]
    config, tokens = record["config"], {t: cells["dense"][t]["metrics"]["tokens"] for t in TEXTS}
    calibrated = next(r for name, texts in cells.items() if name != "dense" for r in texts.values())["config"]["calibration"]
    return (
        f"SmolLM2-135M-Instruct, dequantised from Q4_1 (weights {config['weights_sha']}), {config['dtype']}. "
        f"Token policy `{config['token_policy']}`, {config['sink_tokens']} sink token; windows of {config['seq_len']} tokens; "
        f"scored {tokens['wikitext2-test.txt']:,} tokens of WikiText-2 raw test and {tokens['c4-short.jsonl']:,} of C4. "
        f"Calibrated on other C4 documents ({calibrated}). KL is to the dense model, nats a token. MB a token: the "
        f"weights that one decoded token reads, head included, in {config['dtype']}. Texts are plain streams, cut as they "
        "are; thresholds are solved on all calibration tokens (the command line's default is 8192 of them)."
    )
