"""Methods of other packages: found, used, and named where they are broken."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint

import pytest

from rsparse import make_recipe, sparsify
from rsparse.errors import RSparseError
from rsparse.methods import MethodSpec, _sources, check, makes_recipe, names, observes
from rsparse.sparse_model import state
from rsparse.testing import check_method
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of

MODULE = """
import functools

from rsparse.errors import RSparseError
from rsparse.gated import GatedPlan
from rsparse.methods._uniform import uniform_recipe

def check(options):
    if options.get("twist", 0) < 0:
        raise RSparseError("twist must be 0 or more")

def prepare(model, sparsity, *, twist: int = 0):
    return uniform_recipe(model, sparsity, 1.0, method="theirs")

def gated(model, sparsity) -> GatedPlan:
    return GatedPlan("theirs_gated", "llama", "oracle", sparsity, 1 - sparsity * 18432 / 11520)

twisted = functools.partial(prepare, twist=1)
nothing = 3
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Entry points by name and value, of a module `theirs` and of one that fails at import."""
    (tmp_path / "theirs.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(**points):
        found = [EntryPoint(name, value, _sources.GROUP) for name, value in points.items()]
        monkeypatch.setattr(_sources, "entry_points", lambda group: found if group == "rsparse.methods" else [])
        _sources.plugins.cache_clear()

    yield install
    _sources.plugins.cache_clear()


def test_a_module_with_prepare_and_check(packages):
    packages(theirs="theirs")
    assert names() == sorted([*_sources.files(), "theirs"])
    assert check("theirs", 0.3, {"twist": "4"}) == {"twist": 4}
    with pytest.raises(RSparseError, match="twist must be 0 or more"):
        MethodSpec.parse("theirs:twist=-1")
    assert makes_recipe("theirs")
    assert not observes("theirs")
    assert make_recipe(tiny_model("llama"), "theirs", 0.3).method == "theirs"
    assert MethodSpec.parse("theirs+compensate").fit == ()


def test_a_function_that_makes_a_plan(packages):
    packages(theirs_gated="theirs:gated")
    assert not makes_recipe("theirs_gated")
    with pytest.raises(RSparseError, match=r"method theirs_gated is no recipe .*: it cannot be compensated"):
        MethodSpec.parse("theirs_gated+compensate")
    model = tiny_model("llama")
    sparsify(model, make_recipe(model, "theirs_gated", 0.3), calibration_of("llama"))
    assert state(model).method == "theirs_gated"
    check_method(_sources.load("theirs_gated").prepare)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("broken", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("nowhere.at_all", "ModuleNotFoundError: No module named 'nowhere'"),
        ("theirs:missing", "AttributeError: module 'theirs' has no attribute 'missing'"),
        ("theirs:nothing", "TypeError: it is neither a module with a function `prepare` nor such a function"),
    ],
)
def test_a_broken_one_is_named_and_the_others_work(packages, value, says):
    packages(wrong=value, theirs="theirs")
    assert {"wrong", "theirs", "teal"} <= set(names())
    assert make_recipe(tiny_model("llama"), "theirs", 0.3).method == "theirs"
    with pytest.raises(RSparseError, match=re.escape(f"method 'wrong' does not load: {says}")) as caught:
        MethodSpec.parse("wrong")
    assert "\n" not in str(caught.value)


def test_names_that_it_cannot_have(packages):
    packages(**{"teal": "theirs", "Not-A-Name": "theirs"})
    assert names() == _sources.files()
    assert make_recipe(tiny_model("llama"), "teal", 0.3, allocation="uniform").method == "teal"
    with pytest.raises(
        RSparseError, match=r"'magic' is unknown.*'Not-A-Name': its name must be a lower-case letter.*; method 'teal'"
    ):
        check("magic")


def test_two_of_one_name_are_one(packages, monkeypatch):
    """The first by what it names, wherever its package was found."""
    for order in (1, -1):
        points = [EntryPoint("theirs", value, _sources.GROUP) for value in ("theirs:prepare", "broken")][::order]
        monkeypatch.setattr(_sources, "entry_points", lambda group, points=points: points)
        _sources.plugins.cache_clear()
        assert names().count("theirs") == 1
        with pytest.raises(RSparseError, match="'theirs' does not load"):
            check("theirs")


def test_a_callable_that_is_no_function(packages):
    packages(theirs="theirs:twisted")
    assert makes_recipe("theirs")
    assert check("theirs", 0.3, {"twist": "4"}) == {"twist": 4}
    assert make_recipe(tiny_model("llama"), "theirs", 0.3).method == "theirs"


def test_without_other_packages():
    assert names() == _sources.files()
    assert all(hasattr(_sources.load(name), "prepare") for name in names())
