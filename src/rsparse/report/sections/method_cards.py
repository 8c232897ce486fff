"""A card for each method that occurs, from the docstring of its own file."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any

from rsparse.errors import RSparseError
from rsparse.methods import names
from rsparse.methods._registry import load
from rsparse.report.parts import Facts, Heading, Link, Paragraph, Part, Section, slug
from rsparse.report.reading import Record, text
from rsparse.reproduce.naming import title_of

ORDER, TITLE = 90, "Methods"
COMPENSATE = "compensate"
GIVEN = ("model", "sparsity", "calibration")  # what every method gets
ARXIV = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")
REFERENCE = re.compile(r"`(_\w+|[\w/]+\.py)`")
DEPARTURES = re.compile(r"\bDepartures?(?:, [\w ]+)?:\s*")


def build(records: Sequence[Record]) -> Section | None:
    found: dict[str, set[str]] = {}
    for record in records:
        for name in _methods(record):
            found.setdefault(name, set()).add(record.path)
    parts: list[Part] = []
    for name in sorted(found):
        parts += [Heading(title_of(name), slug(TITLE, name)), *_card(name, len(found[name]))]
    return Section(TITLE, parts) if parts else None


def _methods(record: Record) -> list[str]:
    """Of the record's recipe, of the label of what made it, and the compensation after it."""
    known, preset = [*names()], text(record.config, "preset")
    labelled = max((name for name in known if re.match(rf"{re.escape(name)}(?![A-Za-z0-9_])", preset)), key=len, default="")
    found = labelled or text(record.config, "method")
    fitted = text(record.config, "compensation") or re.search(rf"[-+]{COMPENSATE}\b", preset)
    return [name for name in (found, COMPENSATE if fitted else "") if name]


def _card(name: str, count: int) -> list[Part]:
    pairs: list[tuple[str, str | Link]] = [("records", f"{count}")]
    try:
        doc, prepare = _documented(name)
    except (RSparseError, KeyError) as error:
        why = str(error) if isinstance(error, RSparseError) else "this installation has no method of that name"
        return [Paragraph(f"No card: {why}."), Facts(pairs)]
    paragraphs = [" ".join(part.split()) for part in doc.split("\n\n") if part.strip()]
    said: list[Part] = []
    for paragraph in paragraphs:
        body, *departures = DEPARTURES.split(paragraph)
        said += [Paragraph(body.strip())] if body.strip() else []
        pairs += [("departures from the source", _sentence(each)) for each in departures]
    pairs += [
        ("paper", Link(f"arXiv {number}", f"https://arxiv.org/abs/{number}")) for number in dict.fromkeys(ARXIV.findall(doc))
    ]
    if prepare is not None and (options := _options(prepare)):
        pairs.append(("options", options))
    return [*said, Facts(pairs)] if said else [Paragraph("Its file has no docstring."), Facts(pairs)]


def _documented(name: str) -> tuple[str, Any]:
    """(docstring, function) of a method's file, or of the entry point's; KeyError for a name that is no method."""
    if name == COMPENSATE:
        from rsparse.compensation import fit

        return inspect.cleandoc(fit.__doc__ or ""), None
    prepare = load(name).prepare
    module = sys.modules.get(getattr(prepare, "__module__", ""))
    doc = inspect.cleandoc((module.__doc__ if module else None) or prepare.__doc__ or "")
    return "\n\n".join([doc, *_referred(doc)]), prepare


def _referred(doc: str) -> list[str]:
    """Docstrings of the files that a method's own sends its reader to: `_greedy` beside it, `gated/rules/prompt.py`."""
    found = []
    for word in dict.fromkeys(REFERENCE.findall(doc)):
        name = f"rsparse.{word.removesuffix('.py').replace('/', '.')}" if word.endswith(".py") else f"rsparse.methods.{word}"
        try:
            said = inspect.cleandoc(importlib.import_module(name).__doc__ or "")
        except ImportError:
            continue
        found += [f"`{word}`: {said}"] if said else []
    return found


def _options(prepare: Any) -> str:
    """With their defaults."""
    found = inspect.signature(prepare).parameters.values()
    return ", ".join(
        f"`{each.name}={each.default}`"
        for each in found
        if each.name not in GIVEN and each.default is not inspect.Parameter.empty
    )


def _sentence(words: str) -> str:
    words = words.strip()
    return words[:1].upper() + words[1:]
