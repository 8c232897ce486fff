"""What stands in a table's cells besides figures of quality."""

from __future__ import annotations

from rsparse.reproduce.ordering import NOT_RUN
from rsparse.reproduce.request import Line
from rsparse.reproduce.results import Results, absent
from rsparse.token_policy import TokenPolicy

FAILURE_LENGTH = 60  # of a reason in a table's cell; whole it is among the lines below


def asked(line: Line) -> str:
    return f"{line.level:.0%}" if line.level else "" if line.dense else "own"


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def missing(results: Results, line: Line, policy: TokenPolicy, text: str | None) -> str:
    """In the place of a figure."""
    if reason := results.refusal(line, policy, text):
        return absent(reason)
    failed = results.failure(line, policy, text)
    if failed is None:
        return NOT_RUN
    short = failed if len(failed) <= FAILURE_LENGTH else f"{failed[: FAILURE_LENGTH - 1].rstrip()}…"
    return "failed: " + short.replace("|", "\\|")
