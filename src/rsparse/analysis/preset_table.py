"""What the presets of `sparsify --quality` win and cost: the gap closed, accuracy kept, and seconds to make one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rsparse.analysis.gap_table import BASE, mean_closed
from rsparse.analysis.quality_table import head_lines, row_line, rows_of, share_cell

Record = dict[str, Any]
SECONDS = {"s, recipe": "recipe_seconds", "s, fit": "fit_seconds"}
MEMORY = {"GB, recipe": "recipe_peak_bytes", "GB, fit": "fit_peak_bytes"}
PRESETS = {"teal": "fast", "balanced": "balanced", "best": "best"}  # fast's records are those of its method


def preset_table(records: Sequence[Record], texts: Sequence[str]) -> list[str]:
    """A row for each model, level and preset: the mean gap closed over `texts` under policy `all`, the share of dense
    accuracy above chance that is kept under both policies, seconds for recipe and fit, the memory that they held where a
    record has it, and the GPU that they were on.

    Rows without all texts are left out; what was not measured is empty.
    """
    groups = rows_of(records)
    memory = MEMORY if any("recipe_peak_bytes" in r["config"] for r in records) else {}
    heads = ["model", "asked", "preset", "mean closed", "above chance kept, `all`", "`decode`", *SECONDS, *memory, "on"]
    lines = head_lines(heads)
    for model, level in sorted({(model, level) for model, level, preset in groups if preset in PRESETS}):
        dense, base = groups.get((model, 0.0, "dense"), []), groups.get((model, level, BASE), [])
        for preset, name in PRESETS.items():
            mine = groups.get((model, level, preset), [])
            closed = mean_closed(mine, base, dense, texts)
            if closed is None:
                continue
            cells = [model.removesuffix(".gguf"), f"{level:.0%}", f"`{name}`", f"{closed:.0%}"]
            cells += [share_cell(mine, dense, policy) for policy in ("all", "decode")]
            config = mine[0]["config"]
            cells += cost_cells(config, memory)
            cells.append(str(mine[0]["env"]["gpu"] or mine[0]["env"]["cpu"]))
            lines.append(row_line(cells))
    return lines


def cost_cells(config: Mapping[str, Any], memory: Mapping[str, str] = MEMORY) -> list[str]:
    """Seconds, and GB of the fields of `memory`; empty where there is no figure."""
    cells = ["" if config.get(field) is None else f"{config[field]:.0f}" for field in SECONDS.values()]
    return cells + ["" if config.get(field) is None else f"{config[field] / 1e9:.1f}" for field in memory.values()]
