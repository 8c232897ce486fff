"""What presets and compensation win, and where low rank pays: docs/quality.md and docs/low_rank.md."""

from __future__ import annotations

from typing import Any

from pages.bench import bench_protocol
from pages.folders import RANKS, TITLES
from rsparse.analysis import low_rank_table
from rsparse.analysis.gap_table import gap_tables
from rsparse.analysis.lever_table import lever_tables
from rsparse.analysis.preset_table import preset_table

PRESET_SECONDS = (
    "Seconds are of runs that shared their card with others, up to six at a time: above what they are alone. Where accuracies "
    "were run, they are of the same recipe."
)
PROSE = [text for text in TITLES if text != "github.txt"]
LOW_RANK_LEVEL = 0.5
LEVER_LEVEL = 0.5
LOW_RANK_SAID = (
    "The mean over all texts, every token sparse. `searched` scores by the paper's criterion, which is the column norm where a "
    "linear has a rank and the magnitude elsewhere: its ratio is of both."
)
LEVER_SAID = (
    "The mean share of the gap from sparse-only to dense that is closed on WikiText-2, C4 and StackExchange, every token "
    "sparse; seconds and GB are means over the models, of runs that shared their card with others."
)


def quality_block(bench: list[dict[str, Any]], quality: list[dict[str, Any]]) -> str:
    """What the presets and compensation win back."""
    both = [*bench, *quality]
    records = [r for r in both if r["config"]["token_policy"] == "all"]
    presets = ["**The presets: what they win and cost**", "", *preset_table(both, PROSE), "", PRESET_SECONDS, ""]
    plots = "![perplexity over bytes, by model and text](pareto.png)"
    return "\n".join([*presets, *gap_tables(records, PROSE), plots, "", bench_protocol(quality)])


def levers_block(bench: list[dict[str, Any]], quality: list[dict[str, Any]]) -> str:
    """What each lever wins, alone and beside the others."""
    return "\n".join([*lever_tables([*bench, *quality], PROSE, LEVER_LEVEL), LEVER_SAID])


def searched(records: list[dict[str, Any]], known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The paper's method from the reproduction's folder, where no other folder has the same cell."""

    def cell(record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record["config"].get(name) for name in ("model", "preset", "sparsity", "token_policy", "data"))

    there = {cell(record) for record in known}
    return [r for r in records if r["config"]["method"] == "searched" and cell(r) not in there]


def low_rank_block(records: list[dict[str, Any]]) -> str:
    """Where low rank pays; nothing where there are no records of it."""
    ranks = low_rank_table.load_ranks(RANKS)
    if not ranks:
        return ""
    mine = [r for r in records if r["config"]["token_policy"] == "all" and "perplexity" in r["metrics"]]
    config = next(iter(ranks.values()))["config"]
    said = (
        f"Spectra and prices at {config['sparsity']:.0%} and rho {config['rho']:g}, on {config['calibration']}, weights in "
        f"{config['dtype']}; chosen rho at {LOW_RANK_LEVEL:.0%}, the share of blocks with a rank above 0 in brackets. All "
        "weights were 4 bit once and are dequantised."
    )
    return f"{said}\n\n{low_rank_table.markdown(ranks, mine, LOW_RANK_LEVEL)}\n{LOW_RANK_SAID}"
