"""What came out, from records alone: a model's tables on one page, and the paper's claims over models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rsparse.analysis.quality_table import head_lines, row_line
from rsparse.reproduce.notes import SOURCE, chosen, notes
from rsparse.reproduce.ordering import EQUAL, HOLDS, MISSING, NOT_RUN, REVERSED, UNCLEAR, Outcome, outcomes
from rsparse.reproduce.protocol import protocol
from rsparse.reproduce.request import Request
from rsparse.reproduce.results import Results
from rsparse.reproduce.table import BASE, load, names
from rsparse.reproduce.view import markdown

ORDER = ("main", "own-level", "oracle", "parts", "searched", "generation")  # as a reader wants them; others after these
SAID = {HOLDS: "hold", REVERSED: "reversed", UNCLEAR: "cannot be told", EQUAL: "without difference"}


def all_results(request: Request, folders: Sequence[Path]) -> dict[str, Results]:
    """Of every table by its name, in the order in which a page has them."""
    return {name: Results(load(name), request, *folders) for name in sorted(names(), key=place)}


def place(name: str) -> tuple[int, str]:
    """Where a table stands on a page: sorts names."""
    return ORDER.index(name) if name in ORDER else len(ORDER), name


def has_records(results: Results) -> bool:
    """Whether a method ran in what sets the table apart: its variants, where it has some."""
    lines = [line for line in results.lines if not line.dense]
    own = [line for line in lines if line.variant != BASE]
    return any(results.config(line) is not None for line in own or lines)


def page(title: str, tables: Mapping[str, Results], head: Sequence[str] = ()) -> str:
    """The tables that have records, after the lines of `head`, one that says which have none, and what several tables say."""
    shown = {name: results for name, results in tables.items() if has_records(results)}
    absent = [f"`{name}`" for name in tables if name not in shown]
    sentences, lines = (repeated(said(each) for each in shown.values()) for said in (protocol, notes))
    sources = [line for line in lines if line.startswith(SOURCE)]  # other lines say of one table what is not so of the next
    known = {*sentences, *sources, *(line for each in shown.values() for line in chosen([each]))}
    parts = [f"# {title}", "", *head, "", *([" ".join(sentences), ""] if sentences else [])]
    parts += [f"- {line}" for line in [*chosen(shown.values()), *sources]]
    parts += [f"- Not run on this model: {', '.join(absent)}."] if absent else []
    return "\n".join([*parts, "", *(markdown(results, known) for results in shown.values())]).rstrip("\n") + "\n"


def repeated(said: Iterable[Sequence[str]]) -> list[str]:
    """What more than one of them says, in the order of the first."""
    counts = Counter(line for each in said for line in dict.fromkeys(each))
    return [line for line, count in counts.items() if count > 1]


def claims_table(models: Mapping[str, Mapping[str, Results]]) -> list[str]:
    """The paper's claims by policy and model: whether each holds, with the difference. Keys of `models` head the columns.

    A claim that no model has been measured on is named after the table.
    """
    found: dict[tuple[str, str], dict[str, Outcome]] = {}
    for model, tables in models.items():
        for results in tables.values():
            for policy, mine in outcomes(results).items():
                for each in mine:
                    found.setdefault((_claim(each), policy), {}).setdefault(model, each)  # two tables can have one pair
    claims = list(dict.fromkeys(claim for claim, _ in found))
    policies = list(dict.fromkeys(policy for _, policy in found))
    lines = head_lines(["the paper has", "token policy", *models])
    absent = []
    for claim in claims:
        rows = {policy: found.get((claim, policy), {}) for policy in policies}
        if all(each.verdict == MISSING and each.absent == NOT_RUN for row in rows.values() for each in row.values()):
            absent.append(claim)
            continue
        lines += [row_line([claim, policy, *(_cell(row.get(model)) for model in models)]) for policy, row in rows.items()]
    lines += ["", *_counts(found, policies)]
    return [*lines, *([f"- Not run on any model: {'; '.join(absent)}."] if absent else [])]


def _claim(outcome: Outcome) -> str:
    return f"{outcome.pair.label}, {'perplexity' if outcome.pair.texts else 'accuracy'}"


def _cell(outcome: Outcome | None) -> str:
    if outcome is None:
        return NOT_RUN
    return outcome.absent if outcome.verdict == MISSING else f"**{outcome.verdict}**: {outcome.detail}"


def _counts(found: Mapping[tuple[str, str], Mapping[str, Outcome]], policies: Sequence[str]) -> list[str]:
    lines = []
    for policy in policies:
        counts = Counter(each.verdict for (_, under), row in found.items() if under == policy for each in row.values())
        told = sum(counts[verdict] for verdict in SAID)
        words = ", ".join(f"{counts[verdict]} {said}" for verdict, said in SAID.items() if counts[verdict])
        said = f"of {told} comparisons {words}" if told else "nothing can be compared"
        lines.append(f"- Under `{policy}`, {said}.")
    return lines
