"""When low rank pays: by kind of linear, spectra and price beside the rho that methods chose; then what they gained by it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsparse.analysis.lever_table import is_ablation
from rsparse.analysis.quality_table import head_lines, row_line, rows_of
from rsparse.errors import RSparseError

Record = dict[str, Any]
METHODS = ("searched", "joint")
# The same bytes and, but for low rank, the same recipe; that of `searched` scores by column norm where it has a rank, too.
WITHOUT = {
    "rsparse": "sparse_only",
    "searched": "sparse_only",
    "rsparse-compensate": "sparse_only-compensate",
    "balanced": "joint-lowrank-false",
    "joint-criterion-magnitude": "joint-criterion-magnitude-lowrank-false",
    "joint-criterion-column_norm-compensate": "best",
}
HEADS = ("W, 90 %", "W diag(rms x_d), 90 %", "W x_d, 90 %", "price, fitted", "price, SVD", "pays in")


def load_ranks(folder: Path) -> dict[str, Record]:
    """Records of `rsparse analyze rank --calibration` below `folder`, by model without .gguf. Raises RSparseError for a file
    that is none."""
    found = {}
    for path in sorted(folder.glob("*/rank.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            record["metrics"]["summary"]["dropped"]["ratio"], record["config"]["rho"]
            found[model_of(record)] = record
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RSparseError(f"{path} is no record of analyze rank with a calibration ({error}); move it away") from error
    return found


def model_of(record: Record) -> str:
    """A record's model as the tables call it: the same weights come as a folder or as a .gguf file."""
    return str(record["config"]["model"]).removesuffix(".gguf")


def chosen(records: Sequence[Record], level: float) -> dict[str, dict[str, Any]]:
    """Preset → kind → what its recipe asks, of a model's records at `level` that say it; uniform ones and those without any
    rank have nothing to tell, and ablations are not for this table."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for config in (record["config"] for record in records if not is_ablation(record)):
        kinds = config.get("kinds", {})
        if config["sparsity"] == level and config["method"] in METHODS and any(kind["ranked"] for kind in kinds.values()):
            found[METHODS.index(config["method"]), config["preset"]] = kinds
    return {preset: kinds for (_, preset), kinds in sorted(found.items())}


def kind_table(rank: Record, records: Sequence[Record], level: float) -> list[str]:
    """One model's: a row a kind. Chosen rho is the mean over the blocks, in brackets the share of blocks with a rank."""
    summary = rank["metrics"]["summary"]
    dropped = summary["dropped"]
    presets = chosen(records, level)
    lines = head_lines(["", *HEADS, *(f"rho, {preset}" for preset in presets)])
    for kind, rank90 in summary["rank90"].items():
        cells = [kind, *(f"{share:.0%}" for share in (rank90, dropped["weighted90"][kind], dropped["output90"][kind]))]
        cells += [f"{dropped['ratio'][kind]:.2f}", f"{dropped['svd_ratio'][kind]:.2f}", f"{dropped['pays'][kind]:.0%}"]
        lines.append(row_line([*cells, *(_chosen(kinds.get(kind)) for kinds in presets.values())]))
    return lines


def _chosen(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{found['rho']:.3f} ({found['ranked']:.0%})"


def gain_table(records: Sequence[Record]) -> list[str]:
    """Each recipe with low rank, against itself without, where both were measured: mean KL over the texts of both."""
    rows = {key: _kl(group) for key, group in rows_of(records).items()}
    lines = []
    for (model, level, preset), group in rows_of(records).items():
        config = group[0]["config"]
        base = WITHOUT.get(preset, "")
        theirs = rows.get((model, level, base), {})
        mine = rows[model, level, preset]
        texts = sorted(set(mine) & set(theirs))
        if not texts or not config["rank_share"]:
            continue
        kl, reference = (statistics.fmean(values[text] for text in texts) for values in (mine, theirs))
        cells = [model.removesuffix(".gguf"), f"{level:.0%}", preset, f"{config['rank_share']:.1%}", f"{kl:.3f}", base]
        lines.append(row_line([*cells, f"{reference:.3f}", f"{kl / reference:.2f}"]))
    heads = ["model", "asked", "method", "low rank's share of what is read", "KL", "without", "its KL", "ratio"]
    return [*head_lines(heads), *lines] if lines else []


def _kl(group: Sequence[Record]) -> dict[str, float]:
    return {r["config"]["data"]: r["metrics"]["kl_to_dense"] for r in group if "kl_to_dense" in r["metrics"]}


def markdown(ranks: Mapping[str, Record], records: Sequence[Record], level: float) -> str:
    """Both tables, of every model that has a rank record. `records` are of one token policy."""
    lines: list[str] = []
    for model, rank in ranks.items():
        mine = [record for record in records if model_of(record) == model]
        told = rank["metrics"]["summary"]["dropped"]["ratio_rank_correlation"]
        named = {"rank90": "W", "weighted90": "W diag(rms x_d)", "output90": "W x_d"}
        words = [f"{named[name]} {'none' if value is None else f'{value:+.2f}'}" for name, value in told.items()]
        lines += [f"**{model}**", "", *kind_table(rank, mine, level), ""]
        lines += [f"Rank correlation of a linear's price with its spectra: {', '.join(words)}.", ""]
    gains = gain_table(records)
    return "\n".join([*lines, *(["**KL with and without it**", "", *gains, ""] if gains else [])])
