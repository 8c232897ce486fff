"""The paper's search as a method: the recipe that `rsparse search` finds."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace

import pytest

from rsparse import make_recipe
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from rsparse.methods import MethodSpec, searched
from rsparse.search import SearchSettings, search
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of, uniform

SMALL = {"population": 3, "generations": 2, "samples": 4}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """What a search leaves behind: nothing."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.glob("rsparse-search-*"))


@pytest.fixture
def idle(monkeypatch):
    monkeypatch.setattr(searched, "search", lambda *args, **options: pytest.fail("worked before it checked"))


def searched_of(sparsity=0.5, model=None, **options):
    calibration = calibration_of("llama")  # before the temporary folder is another
    return make_recipe(model or tiny_model("llama"), "searched", sparsity, calibration=calibration, **(SMALL | options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "kl", "criterion": "magnitude", "fit": "dropped", "grouping": "group", "seed": 3},
    ],
)
def test_it_is_the_searchs_recipe(tmp_path, options):
    calibration = calibration_of("llama")
    recipe = searched_of(0.4, **options)
    settings = SearchSettings(0.4, **(SMALL | options))
    found = search(tiny_model("llama"), calibration, settings, storage=f"journal:{tmp_path}/study").recipe
    assert recipe == replace(found, method="searched")
    assert recipe.sparsity == pytest.approx(0.4)
    assert options or len({unit.rho for unit in recipe.units.values()}) > 2
    sparsify(tiny_model("llama"), recipe, calibration)


def test_the_settings_and_defaults_are_the_searchs(monkeypatch):
    seen = []

    def stop(model, calibration, settings, **options):
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(searched, "search", stop)
    given = asdict(SearchSettings(0.4, 5, 2, 7, "kl", "magnitude", "dropped", "group", 3))
    for options in ({"sparsity": 0.5}, given):
        with pytest.raises(KeyboardInterrupt):
            make_recipe(tiny_model("llama"), "searched", calibration=calibration_of("llama"), **options)
    assert seen == [SearchSettings(0.5), SearchSettings(**given)]


def test_progress_counts_to_the_whole(monkeypatch):
    seen = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self):
            seen.append(1)

    monkeypatch.setattr(searched, "progress", lambda total, *words, **more: seen.append(total) or Bar())
    searched_of()
    assert seen == [6] + [1] * 6


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"population": 1}, "population must be 2 or more, got 1"),
        ({"generations": "0"}, "generations must be 1 or more, got 0"),
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"samples": "few"}, "method searched: samples must be a whole number, got 'few'"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"objective": "beauty"}, "objective must be one of perplexity, kl, got 'beauty'"),
        ({"criterion": "residual_norm"}, "a search cannot score by residual_norm"),
        ({"fit": "tight"}, "fit must be one of svd, dropped, got 'tight'"),
        ({"rho": 0.5}, "method searched takes no option 'rho'"),
    ],
)
def test_bad_settings_are_refused_before_a_model_is_there(options, says):
    text = "searched:" + ",".join(f"{name}={value}" for name, value in options.items())
    with pytest.raises(RSparseError, match=says) as caught:
        MethodSpec.parse(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(RSparseError, match=says):
        searched_of(**options)


@pytest.mark.usefixtures("idle")
def test_a_calibration_and_a_level_are_needed():
    with pytest.raises(RSparseError, match=r"^method searched needs a calibration$"):
        make_recipe(tiny_model("llama"), "searched", 0.5)
    with pytest.raises(RSparseError, match="needs a sparsity between 0 and 1, got 0"):
        searched_of(0.0)


def test_more_samples_than_windows_and_a_sparse_model_are_refused():
    with pytest.raises(RSparseError, match="the calibration has 64 windows, and the search samples 65"):
        searched_of(samples=65)
    model = tiny_model("llama")
    sparsify(model, uniform(model), calibration_of("llama"))
    with pytest.raises(RSparseError, match="search needs the dense model"):
        searched_of(model=model)
