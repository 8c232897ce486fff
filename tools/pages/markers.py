"""What is generated of a page that is written by hand stands between two comments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def between(path: Path, blocks: Mapping[str, str]) -> str:
    """The page with each block between the markers of its name. Exits with a line where they are not there once, in order."""
    text = path.read_text(encoding="utf-8")
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: begin (tools/make_results.py) -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        if text.count(begin) != 1 or text.count(end) != 1 or end not in rest:
            raise SystemExit(f"{path}: it must have {begin} and {end}, each once and in this order")
        text = f"{before}{begin}\n{block}\n{end}{rest.partition(end)[2]}"
    return text
