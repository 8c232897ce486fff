"""The report's sections, one a file, found by its name.

A section has ORDER, where it stands, and `build(records) -> Section | None`: None where there is nothing to say. It names
the records that it shows in `Section.used`; a record that no section uses is named at the end of the page.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from rsparse.report.parts import Section
from rsparse.report.reading import Record


def names() -> list[str]:
    """Sections in the order of the page."""
    found = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return sorted(found, key=lambda name: (importlib.import_module(f"{__name__}.{name}").ORDER, name))


def build(records: Sequence[Record]) -> tuple[list[Section], list[str]]:
    """(sections, titles of those with nothing to show)."""
    sections, without = [], []
    for name in names():
        module = importlib.import_module(f"{__name__}.{name}")
        section = module.build(records)
        if section is None:
            without.append(module.TITLE)
        else:
            sections.append(section)
    return sections, without
