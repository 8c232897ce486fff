"""Whether the paper's ordering of methods holds: pairs that it orders, and what is measured of each, with its interval."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

from rsparse import published
from rsparse.published import Figure
from rsparse.reproduce.request import Line
from rsparse.reproduce.results import APART, Results, absent
from rsparse.reproduce.table import PAPER_METHOD
from rsparse.token_policy import TokenPolicy

HOLDS, REVERSED, UNCLEAR, MISSING = "holds", "reversed", "cannot be told", "not comparable"
EQUAL = "no difference"  # in any row or window
ORDERING = "Paper's ordering"  # starts the line of a table
VERBS = {
    REVERSED: "it is reversed for",
    HOLDS: "it holds for",
    UNCLEAR: "it cannot be told for",
    EQUAL: "it makes no difference for",
}
NOT_RUN, FAILED = "not run", "failed"


@dataclass(frozen=True)
class Pair:
    """The paper has `better` above `worse`; on `texts` it is told by perplexity, else by accuracy."""

    better: Line
    worse: Line
    texts: bool

    @property
    def label(self) -> str:
        level = f" at {self.better.level:.0%}" if self.better.level else ""
        return f"{self.better.label} over {self.worse.label}{level}"


@dataclass(frozen=True)
class Outcome:
    """One pair under one policy. `detail`: the difference with its 95 % interval, or why there is none."""

    pair: Pair
    verdict: str
    detail: str

    @property
    def absent(self) -> str:
        """In a word or two, why there is nothing to compare."""
        return self.detail if self.detail in (NOT_RUN, FAILED) else absent(self.detail)

    def to_dict(self) -> dict[str, Any]:
        pair = self.pair
        named = {"better": pair.better.label, "worse": pair.worse.label, "sparsity": pair.better.level}
        return named | {"verdict": self.verdict, "detail": self.detail}


def published_name(line: Line) -> str | None:
    """What the published sets call a line's method; None for one that is ours alone."""
    name = line.method.name
    return "rsparse" if name == PAPER_METHOD else None if name == "rsparse" else name


def is_of(figure: Figure, line: Line) -> bool:
    """Whether a published figure is of a line's method, level (any, where it is not stated) and options."""
    options = dict(line.method.options)
    return (
        published_name(line) == figure.method
        and (figure.sparsity is None or figure.sparsity == line.level)
        and all(options.get(name) == str(value) for name, value in figure.options.items())
    )


def pairs(results: Results) -> list[Pair]:
    """Neighbours in the paper's own rankings by model and level, and what it claims without figures.

    A ranking is of what the table has; where some of that has no figures here, what stands on both sides of it is a pair too.
    """
    found: dict[tuple[Line, Line], Pair] = {}
    lines = [line for line in results.lines if not line.dense]
    measured = [line for line in lines if results.config(line) is not None]
    for name in results.table.published:
        figures = published.load(name)
        if figures.arxiv != published.PAPER:
            continue
        for group in _groups(figures.rows):
            ranked = sorted(group, key=lambda figure: figure.mean, reverse=not figures.lower_is_better)
            for better, worse in [*_neighbours(ranked, lines), *_neighbours(ranked, measured)]:
                found[better, worse] = Pair(better, worse, figures.lower_is_better)
    for order in results.table.orders:
        specs = [results.request.spec(each, results.table) for each in (order.better, order.worse)]
        for better in lines:
            for worse in lines:
                if _same_cell(better, worse) and [better.method, worse.method] == specs:
                    found[better, worse] = Pair(better, worse, bool(results.texts(better)))
    return list(found.values())


def outcome(results: Results, pair: Pair, policy: TokenPolicy) -> Outcome:
    """Compared on the same rows or windows."""
    found = _outcome(results, pair, policy)
    achieved = [results.achieved(line, policy, texts=pair.texts) for line in (pair.better, pair.worse)]
    if found.verdict == MISSING or None in achieved:
        return found
    high, low = achieved
    assert high is not None
    assert low is not None
    if abs(high - low) <= APART:
        return found
    return replace(found, detail=f"{found.detail}, at {high:.1%} and {low:.1%} achieved")


def _outcome(results: Results, pair: Pair, policy: TokenPolicy) -> Outcome:
    if pair.texts:
        ratio = results.perplexity_ratio(pair.better, pair.worse, policy)
        if ratio is None:
            return Outcome(pair, MISSING, _why(results, pair, policy))
        if ratio.low == ratio.high == 1:
            return Outcome(pair, EQUAL, _equal(results, pair))
        value, low, high = (_factor(each) for each in (ratio.value, ratio.low, ratio.high))
        detail = f"perplexity × {value}, {low} to {high}"
        return Outcome(pair, HOLDS if ratio.high < 1 else REVERSED if ratio.low > 1 else UNCLEAR, detail)
    difference = results.accuracy_difference(pair.better, pair.worse, policy)
    if difference is None:
        return Outcome(pair, MISSING, _why(results, pair, policy))
    if difference.low == difference.high == 0:
        return Outcome(pair, EQUAL, _equal(results, pair))
    detail = f"{difference.value:+.2f} points, {difference.low:+.2f} to {difference.high:+.2f}"
    return Outcome(pair, HOLDS if difference.low > 0 else REVERSED if difference.high < 0 else UNCLEAR, detail)


def outcomes(results: Results) -> dict[str, list[Outcome]]:
    """By token policy."""
    found = pairs(results)
    return {str(policy): [outcome(results, pair, policy) for pair in found] for policy in results.request.policies}


def verdict_line(found: dict[str, list[Outcome]]) -> str:
    """One plain line: whether the ordering holds here, and where it differs."""
    if not any(found.values()):
        return f"{ORDERING}: none is published for these rows."
    absences = {each.absent if each.verdict == MISSING else "" for mine in found.values() for each in mine}
    if len(absences) == 1 and (only := absences.pop()):
        return f"{ORDERING}: {only}."
    return f"{ORDERING}: " + "; ".join(f"under {policy} {_told(each)}" for policy, each in found.items()) + "."


def _told(found: list[Outcome]) -> str:
    words = []
    for verdict, verb in VERBS.items():
        if mine := [f"{each.pair.label} ({each.detail})" for each in found if each.verdict == verdict]:
            words.append(f"{verb} {', '.join(mine)}")
    missing: dict[str, list[str]] = {}
    for each in found:
        if each.verdict == MISSING:
            missing.setdefault(each.absent, []).append(each.pair.label)
    words += [f"{why} for {', '.join(labels)}" for why, labels in missing.items()]
    return ("it does not hold: " if any(each.verdict == REVERSED for each in found) else "") + ", ".join(words)


def _factor(value: float) -> str:
    """With the digits that tell it from 1."""
    return f"{value:.4f}" if value == 1 or abs(value - 1) >= 5e-5 else f"{value:.6f}"


def _groups(rows: tuple[Figure, ...]) -> list[list[Figure]]:
    """Figures of one model and level, or of one option that is varied, the dense model left out."""
    groups: dict[tuple[Any, ...], list[Figure]] = {}
    for row in rows:
        if row.method != "dense":
            groups.setdefault((row.model, row.sparsity, tuple(row.options)), []).append(row)
    return list(groups.values())


def _neighbours(ranked: list[Figure], lines: list[Line]) -> Iterator[tuple[Line, Line]]:
    """(better, worse) of neighbouring figures, of those that have a line at all."""
    here = [figure for figure in ranked if any(is_of(figure, line) for line in lines)]
    for high, low in pairwise(here):
        for better, worse in product(lines, lines):
            if _same_cell(better, worse) and is_of(high, better) and is_of(low, worse):
                yield better, worse


def _same_cell(a: Line, b: Line) -> bool:
    return a.level == b.level and a.variant == b.variant


def _why(results: Results, pair: Pair, policy: TokenPolicy) -> str:
    for line in (pair.better, pair.worse):
        for text in results.texts(line) if pair.texts else (None,):
            if reason := results.refusal(line, policy, text):
                return reason
            if results.failure(line, policy, text):
                return FAILED
    return NOT_RUN


def _equal(results: Results, pair: Pair) -> str:
    searched = next((line for line in (pair.better, pair.worse) if line.method.name == PAPER_METHOD), None)
    config = None if searched is None else results.config(searched)
    one = config is not None and config.get("rho") == [1.0]
    return "the search chose rho 1 for every linear" if one else f"in any {'window' if pair.texts else 'row'}"
