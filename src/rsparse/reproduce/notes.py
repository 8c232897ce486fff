"""What must be known of a table's figures: levels that were missed, cells that cannot be, where published ones are from."""

from __future__ import annotations

from rsparse import published
from rsparse.reproduce.request import Line
from rsparse.reproduce.results import Results

APART = 0.01  # of sparsity: beyond it the bytes are not those that were asked
WHY = {
    "relufication": "what ReLU makes 0 is dropped whatever is asked, and an MLP with fewer zeros is shifted to its own share "
    "all the same",
}


def notes(results: Results) -> list[str]:
    """Plain lines."""
    return [*_levels(results), *_without_figure(results), *_generation(results), *_published(results)]


def _levels(results: Results) -> list[str]:
    explained: list[str] = []
    others: list[str] = []
    for line in results.lines:
        missed = [] if line.dense or not line.level else _missed(results, line)
        if missed:
            *most, last = missed
            text = f"{line.label} asked for {line.level:.0%} drops {', '.join(most)}{' and ' if most else ''}{last}"
            why = WHY.get(line.method.name)
            (explained if why else others).append(f"{text}: {why}" if why else text)
    lines = [f"Not at equal bytes: {text}." for text in explained]
    return lines + ([f"Not at equal bytes here: {'; '.join(others)}."] if others else [])


def _missed(results: Results, line: Line) -> list[str]:
    found = []
    for policy in results.request.policies:
        both = bool(results.has_tasks(line) and results.texts(line))  # a table on both says which it is
        for texts in (False, True):
            achieved = results.achieved(line, policy, texts=texts)
            if achieved is not None and abs(achieved - line.level) > APART:
                where = f" on the {'texts' if texts else 'tasks'}" if both else ""
                found.append(f"{achieved:.1%} under {policy}{where}")
    return found


def _without_figure(results: Results) -> list[str]:
    refused: dict[str, list[str]] = {}
    failed: dict[str, list[str]] = {}
    for line in results.lines:
        for policy in results.request.policies:
            for text in [*results.texts(line), *([None] if results.has_tasks(line) else [])]:
                for found, why in ((refused, results.refusal), (failed, results.failure)):
                    if reason := why(line, policy, text):
                        found.setdefault(reason, []).append(_named(line))
    heads = ("No figure for", refused), ("Failed, to be tried again by the next run:", failed)
    return [f"{head} {', '.join(dict.fromkeys(lines))}: {reason}." for head, found in heads for reason, lines in found.items()]


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
            found.append(f"Published figures are of other models, each named: {figures.provenance()}")
    return found or ["Published figures are of token policies that did not run here, and are not shown."]


def _named(line: Line) -> str:
    return f"{line.label} at {line.level:.0%}" if line.level else line.label
