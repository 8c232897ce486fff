"""Speed of decoding as tables: tokens a second and speed-ups, measured against predicted, and where the time goes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsparse.analysis.quality_table import head_lines, row_line
from rsparse.errors import RSparseError

Record = dict[str, Any]
SPEEDS = "Speed-ups are of decode alone, over the best dense path of the same run, with lm_head, attention and KV included."
CUBLAS = ("steps-cublas", "compile-blocks", "compile")  # dense paths whose products are cuBLAS's
# Longest first: a kernel is of the first kind whose word its name holds.
KINDS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attend", "flash", "fmha", "attention", "sdpa"),
    "linears": ("stream", "gather", "gemm", "gemv", "matvec", "nvjet", "cutlass", "splitk", "cublas"),
    "select and norms": ("select", "norm", "silu", "gelu", "mul"),
}


def load_records(folder: Path) -> list[Record]:
    """The decode records below `folder`, by model, ranks and sparsity. Raises RSparseError for a file that is no record."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["config"]["suite"] == "decode":
                found.append(record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RSparseError(f"{path} is not a result record ({error}); move it away") from error
    return sorted(found, key=_order)


def markdown(records: Sequence[Record], *, level: int = 2) -> str:
    """One section a model on one machine, its heading at `level`; before them what all have in common.

    A row a cell, then what dense paths gave, then time by kind of kernel.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(_group(record), []).append(record)
    if not groups:
        return ""
    usual, count = Counter(rows[0]["config"]["masks"] for rows in groups.values()).most_common(1)[0]
    usual = usual if count > 1 else ""
    sections = [f"{SPEEDS}{f' Masks, where nothing else is said: {usual}.' if usual else ''}"]
    for (model, gpu, dtype, *_), rows in groups.items():
        config = rows[0]["config"]
        lines = [f"{'#' * level} {model} on {gpu}", "", _protocol(config, dtype, usual), "", *_speeds(rows), "", *_dense(rows)]
        if any(row["metrics"].get("kernels") for row in rows):
            lines += ["", *_times(rows)]
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def by_length(records: Sequence[Record]) -> str:
    """Tokens a second after so many new ones, of one run each: decode alone, and the prompt included."""
    head = ["model", "sparsity asked", "low-rank units", "new tokens", "dense", "sparse", "×"]
    lines = head_lines([*head, "dense, with prefill", "sparse, with prefill", "×"])
    for record in records:
        config, metrics = record["config"], record["metrics"]
        dense = metrics["dense"][metrics["dense_best"]]["by_length"]
        for length, each in metrics["by_length"].items():
            cells = [config["model"], f"{config['sparsity']:.0%}", config["ranks"] or "recipe", length]
            for name in ("tokens_per_second", "with_prefill"):
                cells += [f"{dense[length][name]:.1f}", f"{each[name]:.1f}", f"{each[name] / dense[length][name]:.3f}"]
            lines.append(row_line(cells))
    return "\n".join(lines) + "\n"


def _speeds(rows: Sequence[Record]) -> list[str]:
    head = ["sparsity asked", "achieved", "low-rank units", "rank share", "tokens/s", "with prefill", "ms a token"]
    head += ["× best dense", "× best cuBLAS", "× by bytes", "1/(1−s)", "TB/s", "of copy"]
    lines = head_lines(head)
    for row in rows:
        config, metrics = row["config"], row["metrics"]
        length = str(max((int(each) for each in metrics["by_length"]), default=0))
        whole = metrics["by_length"].get(length, {}).get("with_prefill")
        copy = metrics["copy_bytes_per_second"]
        cells = [f"{config['sparsity']:.0%}", f"{metrics['achieved_sparsity']:.2%}", config["ranks"] or "recipe"]
        cells += [f"{config['rank_share']:.1%}", f"{metrics['tokens_per_second']:.1f}"]
        cells += ["–" if whole is None else f"{whole:.1f}", f"{metrics['ms_per_token']:.3f}", f"{metrics['speedup']:.3f}"]
        cells += ["–" if metrics["speedup_cublas"] is None else f"{metrics['speedup_cublas']:.3f}"]
        cells += [f"{metrics['speedup_by_bytes']:.3f}", f"{metrics['speedup_of_linears']:.3f}"]
        cells += [f"{metrics['bytes_per_second'] / 1e12:.2f}"]
        cells += ["–" if copy is None else f"{metrics['bytes_per_second'] / copy:.0%}"]
        lines.append(row_line(cells))
    return lines


def _dense(rows: Sequence[Record]) -> list[str]:
    """Of every run in the rows the same paths: the fastest of each, since a path is as good as its best run."""
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]["dense"]))
    lines = head_lines(["dense path", "tokens/s", "ms a token", "spread over repeats"])
    for name in names:
        best = max((r["metrics"]["dense"][name] for r in rows if name in r["metrics"]["dense"]), key=_rate)
        cells = [name, f"{best['tokens_per_second']:.1f}", f"{best['ms_per_token']:.3f}", f"{best['repeats_spread']:.1%}"]
        lines.append(row_line(cells))
    return lines


def _times(rows: Sequence[Record]) -> list[str]:
    kinds = [*KINDS, "other"]
    lines = head_lines(["ms a token in", *kinds, "between kernels"])
    first = rows[0]["metrics"]
    traces = [(f"dense, {name}", trace) for name, trace in first["dense_kernels"].items()]
    traces += [
        (f"{row['config']['sparsity']:.0%}, {row['config']['ranks'] or 'recipe'}", row["metrics"]["kernels"]) for row in rows
    ]
    for label, trace in traces:
        if trace:
            sums = by_kind(trace)
            idle = max(0.0, trace["span_ms"] - trace["busy_ms"])
            lines.append(row_line([label, *(f"{sums[kind]:.3f}" for kind in kinds), f"{idle:.3f}"]))
    return lines


def by_kind(trace: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds a token of a trace by KINDS and `other`."""
    sums = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, each in trace["kernels"].items():
        kind = next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), "other")
        sums[kind] += each["ms"]
    sums["other"] += trace["others_ms"]
    return sums


def _protocol(config: Mapping[str, Any], dtype: str, usual: str) -> str:
    weights = f"weights {'random' if config.get('weights') == 'random' else config['weights_sha']}"
    masks = "" if config["masks"] == usual else f" Masks: {config['masks']}."
    return (
        f"{dtype}, {weights}; batch {config['batch']}, prompt {config['prompt_tokens']} tokens dense, {config['new_tokens']} "
        f"new ones, median of {config['repeats']}.{masks}"
    )


def _group(record: Record) -> tuple[str, ...]:
    config = record["config"]
    machine = record["env"]["gpu"] or record["env"]["cpu"]
    size = (str(config[name]) for name in ("batch", "prompt_tokens", "new_tokens", "repeats"))
    return (config["model"], machine, config["dtype"], *size)


def _order(record: Record) -> tuple[Any, ...]:
    config = record["config"]
    return (*_group(record), config["ranks"] or "", config["sparsity"])


def _rate(entry: Mapping[str, float]) -> float:
    return entry["tokens_per_second"]
