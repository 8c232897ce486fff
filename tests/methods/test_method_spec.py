from __future__ import annotations

import re

import pytest

from rsparse.compensation import FitSettings
from rsparse.errors import RSparseError
from rsparse.methods import MethodSpec, names, seeded
from rsparse.methods._presets import PRESETS


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
    assert (spec.fit, spec.preset) == (None, "")


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


@pytest.mark.parametrize(
    ("text", "name", "options", "fit", "label"),
    [
        ("teal+compensate", "teal", {}, {}, "teal-compensate"),
        ("teal+compensate:steps=100", "teal", {}, {"steps": "100"}, "teal-compensate-steps100"),
        (
            "teal:step=0.1,grouping=group+compensate:levels=false,steps=4,learning_rate=2e-3",
            "teal",
            {"step": "0.1", "grouping": "group"},
            {"levels": "false", "steps": "4", "learning_rate": "2e-3"},
            "teal-grouping-group-step0.1-compensate-learning_rate2e-3-levels-false-steps4",
        ),
        (
            " rsparse : rho=0.9 + compensate : seed = 3 ",
            "rsparse",
            {"rho": "0.9"},
            {"seed": "3"},
            "rsparse-rho0.9-compensate-seed3",
        ),
    ],
)
def test_a_compensation_after_a_method(text, name, options, fit, label):
    spec = MethodSpec.parse(text)
    assert (spec.name, dict(spec.options), dict(spec.fit), spec.preset, spec.label) == (name, options, fit, "", label)


@pytest.mark.parametrize(
    ("preset", "name", "options", "fit"),
    [
        ("fast", "teal", (), None),
        ("balanced", "joint", (), None),
        ("best", "joint", (("criterion", "column_norm"), ("lowrank", "false")), ()),
    ],
)
def test_presets(preset, name, options, fit):
    spec = MethodSpec.parse(f" {preset} ")
    assert (spec.name, spec.options, spec.fit, spec.preset, spec.label) == (name, options, fit, preset, preset)


def test_a_preset_is_no_methods_name():
    assert set(PRESETS) == {"fast", "balanced", "best"}
    assert not set(PRESETS) & set(names())


def test_labels_are_distinct_names_of_files():
    texts = [
        *names(), *PRESETS, "teal+compensate", "teal+compensate:steps=4", "teal+compensate:steps=40", "joint+compensate",
        "teal+compensate:levels=false", "teal+compensate:factors=false", "teal:step=0.1", "teal:step=0.1+compensate",
        "teal:tokens=64+compensate:batch_tokens=64", "rsparse:rho=0.9", "rsparse:rho=0.9+compensate",
        "rsparse:rho=0.8+compensate", "nncf:levels=up=0.3;down=0.5+compensate:learning_rate=1e-3",
    ]  # fmt: skip
    labels = [MethodSpec.parse(text).label for text in texts]
    assert len(set(labels)) == len(texts)
    assert all(re.fullmatch(r"\w[\w.-]*", label) for label in labels)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dense+compensate", "the dense model has nothing to compensate"),
        ("dense+compensate:steps=3", "the dense model has nothing to compensate"),
        ("teal+", r"only \+compensate can follow a method, not \+$"),
        ("teal+polish", r"only \+compensate can follow a method, not \+polish"),
        ("teal+compensate+compensate", r"only \+compensate can follow a method, not \+compensate\+compensate"),
        ("+compensate", "method '' is unknown"),
        ("fastest", "method 'fastest' is unknown"),
        ("magic+compensate", "method 'magic' is unknown"),
        ("teal+compensate:", "expected NAME or NAME:OPTION=VALUE"),
        ("teal+compensate:steps", "expected NAME or NAME:OPTION=VALUE"),
        ("teal+compensate:steps=1,steps=2", "expected NAME or NAME:OPTION=VALUE"),
        ("teal+compensate:steps=0", "steps must be at least 1, got 0"),
        ("teal+compensate:steps=few", "compensate: steps must be like 60, got 'few'"),
        ("teal+compensate:rho=0.5", "compensate takes no option 'rho'"),
        ("teal:rho=0.5+compensate", "method teal takes no option 'rho'"),
        ("teal:steps=3+compensate", "method teal takes no option 'steps'"),
        ("teal:calibration=here", "method teal takes no option 'calibration'"),
        ("joint:model=mine", "method joint takes no option 'model'"),
        ("rsparse:sparsity=0.3", "method rsparse takes no option 'sparsity'"),
        ("joint:rounds=-1", "rounds must be 0 or more, got -1"),
    ],
)
def test_what_is_refused_and_how(text, says):
    with pytest.raises(RSparseError, match=says) as caught:
        MethodSpec.parse(text)
    assert "\n" not in str(caught.value)


def test_options_are_all_the_fits_settings():
    fit = dict(MethodSpec.parse("teal+compensate:steps=4,seed=9").fit)
    assert FitSettings.parse(fit, "cuda") == FitSettings(steps=4, seed=9)


def test_a_seed_goes_to_the_methods_that_draw():
    assert {name: seeded(name, 3) for name in names() if seeded(name, 3)} == {"joint": {"seed": 3}, "searched": {"seed": 3}}
