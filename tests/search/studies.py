"""A study, and one slot worked off."""

from __future__ import annotations

from rsparse.search.study import SearchStudy

SETTINGS = {"sparsity": 0.5, "model": "abc"}
KINDS = ["sqlite:///", "journal:"]


def opened(storage, **changes):
    return SearchStudy(storage, "search", SETTINGS | changes)


def worked(study, value=2.0, generation=0, population=3, stopped=False):
    slot = study.claim(generation, population)
    assert slot is not None
    study.tell([0.25, 1.0], value, stopped)
    return slot
