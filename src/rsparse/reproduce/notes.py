"""What must be known of a table's figures: levels that were missed, cells that cannot be, where published ones are from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rsparse import published
from rsparse.reproduce.request import Line
from rsparse.reproduce.results import APART, Results
from rsparse.reproduce.table import PAPER_METHOD
from rsparse.token_policy import TokenPolicy

SOURCE = "Published figures are of other models, each named"
CHOSEN = "What the search chose"
PAST = re.compile(r"^sparsity \S+ is (?=past )")  # a level's own words before what all levels of a method share
WHY = {
    "relufication": "what ReLU makes 0 is dropped whatever is asked, and an MLP with fewer zeros is shifted to its own share "
    "all the same",
}


def notes(results: Results) -> list[str]:
    """Plain lines."""
    return [*chosen([results]), *_levels(results), *_without_figure(results), *_generation(results), *_published(results)]


def chosen(tables: Iterable[Results]) -> list[str]:
    """What the search chose for the lines of `tables`, where a record says so: one plain line."""
    found: dict[str, dict[str, list[str]]] = {}
    lines = {(line.label, line.level): (results, line) for results in tables for line in results.lines}
    for (label, level), (results, line) in sorted(lines.items()):
        config = results.config(line) if line.method.name == PAPER_METHOD else None
        if config is not None and "rho" in config:
            found.setdefault(label, {}).setdefault(_chosen(config), []).append(f"{level:.0%}")
    said = [f"{label} at {'; at '.join(f'{_joined(at)} {what}' for what, at in each.items())}" for label, each in found.items()]
    return [f"{CHOSEN}: {'. '.join(said)}."] if said else []


def _chosen(config: Mapping[str, Any]) -> str:
    if config["rho"] == [1.0]:
        return "rho 1 for every linear, which is sparse-only"
    kinds = [f"{kind} in {entry['ranked']:.0%}" for kind, entry in config.get("kinds", {}).items() if entry["ranked"]]
    least, most = min(config["rho"]), max(config["rho"])
    said = f"rho {least:.2g} to {most:.2g}, factors {config['rank_share']:.1%} of what a sparse row reads"
    return f"{said} ({', '.join(kinds)} of the blocks)" if kinds else said


def _joined(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _levels(results: Results) -> list[str]:
    found = []
    both = any(results.has_tasks(line) for line in results.lines) and any(results.texts(line) for line in results.lines)
    for policy in results.request.policies:
        for texts in (False, True):
            missed = [(line, achieved) for line, achieved in _achieved(results, policy, texts) if _is_missed(line, achieved)]
            if not missed:
                continue
            where = f" on the {'texts' if texts else 'tasks'}" if both else ""
            words = []
            for label, lines in groupby(missed, lambda each: each[0].label):
                mine = list(lines)
                why = WHY.get(mine[0][0].method.name)
                levels = ", ".join(f"{achieved:.1%} for {line.level:.0%}" for line, achieved in mine)
                words.append(f"{label} {levels}{f' ({why})' if why else ''}")
            found.append(f"Not at equal bytes under {policy}{where}: achieved is more than a point off in {'; '.join(words)}.")
    return found


def _achieved(results: Results, policy: TokenPolicy, texts: bool) -> Iterator[tuple[Line, float]]:
    for line in results.lines:
        achieved = results.achieved(line, policy, texts=texts)
        if achieved is not None:
            yield line, achieved


def _is_missed(line: Line, achieved: float) -> bool:
    return bool(line.level) and abs(achieved - line.level) > APART


def _without_figure(results: Results) -> list[str]:
    refused: dict[str, list[Line]] = {}
    failed: dict[str, list[Line]] = {}
    for line in results.lines:
        for policy in results.request.policies:
            for text in [*results.texts(line), *([None] if results.has_tasks(line) else [])]:
                for found, why in ((refused, results.refusal), (failed, results.failure)):
                    if reason := why(line, policy, text):
                        found.setdefault(PAST.sub("", reason), []).append(line)
    heads = ("No figure for", refused), ("Failed, to be tried again by the next run:", failed)
    return [f"{head} {_all_named(lines)}: {reason}." for head, found in heads for reason, lines in found.items()]


def _generation(results: Results) -> list[str]:
    wanted = any(variant.generates for row in results.table.rows(results.request.choice) for variant in row.variants)
    missing = wanted and not results.request.generated
    return (
        ["No summarisation here: no task that generates text was given (rows of `context` and `summary`)."] if missing else []
    )


def _published(results: Results) -> list[str]:
    if not results.table.published:
        return ["Published figures for this table are not at hand."]
    policies = {str(policy) for policy in results.request.policies}
    found = []
    for name in results.table.published:
        figures = published.load(name)
        if figures.token_policy in policies:
            found.append(f"{SOURCE}: {figures.provenance()}")
    return found or ["Published figures are of token policies that did not run here, and are not shown."]


def _all_named(lines: list[Line]) -> str:
    """Each once, the levels of a method together."""
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        found.setdefault(line.label, {})[f"{line.level:.0%}" if line.level else ""] = None
    return "; ".join(f"{label} at {', '.join(levels)}" if any(levels) else label for label, levels in found.items())
