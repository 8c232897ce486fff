"""One name for a method, from its spec and from the label that records keep."""

from __future__ import annotations

import pytest

from rsparse.methods import MethodSpec
from rsparse.reproduce.naming import title, title_of

TITLES = {
    "dense": "dense",
    "sparse_only": "sparse_only",
    "searched": "R-Sparse (searched)",
    "searched:population=8,generations=10": "R-Sparse (searched, generations 10, population 8)",
    "rsparse:rho=0.9,fit=svd,criterion=paper": "rsparse (criterion paper, fit svd, rho 0.9)",
    "relufication:level=own": "relufication (level own)",
    "teal+compensate": "teal-compensate",
    "teal+compensate:steps=100": "teal-compensate-steps100",
    "searched:samples=4+compensate": "searched-samples4-compensate",
    "best": "best",
}


@pytest.mark.parametrize("text", TITLES)
def test_a_label_has_the_title_of_its_method(text):
    spec = MethodSpec.parse(text)
    assert title(spec) == title_of(spec.label) == TITLES[text]


@pytest.mark.parametrize("label", ["", "-", "mine", "mine-rho0.9", "teal-levels", "teal-rho-0.9", "teal--x-y", "<b>-'x"])
def test_what_no_method_with_options_is_called_stays(label):
    assert title_of(label) == label
