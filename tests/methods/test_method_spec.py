from __future__ import annotations

import pytest

from rsparse.errors import RSparseError
from rsparse.methods import MethodSpec


@pytest.mark.parametrize(
    ("text", "name", "options", "label"),
    [
        ("teal", "teal", {}, "teal"),
        ("rsparse:rho=0.9,fit=svd", "rsparse", {"rho": "0.9", "fit": "svd"}, "rsparse-fit-svd-rho0.9"),
        (
            " sparse_only: criterion = column_norm ",
            "sparse_only",
            {"criterion": "column_norm"},
            "sparse_only-criterion-column_norm",
        ),
        ("nncf:levels=up=0.3;down=0.5", "nncf", {"levels": "up=0.3;down=0.5"}, "nncf-levels-up_0.3_down_0.5"),
    ],
)
def test_parse(text, name, options, label):
    spec = MethodSpec.parse(text)
    assert (spec.name, dict(spec.options), spec.label) == (name, options, label)


def test_the_order_of_options_makes_no_other_label():
    assert MethodSpec.parse("rsparse:rho=0.9,fit=svd").label == MethodSpec.parse("rsparse:fit=svd,rho=0.9").label


@pytest.mark.parametrize(
    "text", ["rsparse:", "rsparse:rho", "rsparse:rho=", "rsparse:=3", "rsparse:rho=1,rho=2", "rsparse:rho=1,"]
)
def test_another_form_is_refused(text):
    with pytest.raises(RSparseError, match="expected NAME or NAME:OPTION=VALUE"):
        MethodSpec.parse(text)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(RSparseError, match=r"'magic' is unknown; choose one of .*teal"):
        MethodSpec.parse("magic")
