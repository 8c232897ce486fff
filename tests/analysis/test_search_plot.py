"""A search as a picture."""

from __future__ import annotations

import math

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest

from rsparse.analysis.search_plot import plot
from rsparse.errors import RSparseError
from rsparse.recipe import Recipe, UnitRecipe

HISTORY = [3.0, 2.5, 2.5]


def recipe_of(rhos):
    """`rhos`: by name of the unit."""
    units = {name: UnitRecipe((name,), (24,), 48, 0.5, rho, (0,)) for name, rho in rhos.items()}
    return Recipe("llama", units, model="a-model")


RHOS = {
    "model.layers.0.self_attn.q_proj": 1.0,
    "model.layers.2.self_attn.q_proj": 0.25,
    "model.layers.0.mlp.up_proj": 0.5,
    "model.layers.1.mlp.up_proj": 0.75,
}


def test_the_plot_is_a_readable_png(tmp_path):
    path, before = tmp_path / "new" / "search.png", plt.get_fignums()
    plot(recipe_of(RHOS), HISTORY, "perplexity", path)
    image = matplotlib.image.imread(path)
    assert image.shape[0] >= 300
    assert image.shape[1] >= 800
    assert image.std() > 0.05
    assert [each.name for each in path.parent.iterdir()] == ["search.png"]
    assert plt.get_fignums() == before


@pytest.mark.parametrize(("objective", "values"), [("perplexity", [math.exp(each) for each in HISTORY]), ("kl", HISTORY)])
def test_the_best_by_generation(tmp_path, drawn, objective, values):
    plot(recipe_of(RHOS), HISTORY, objective, tmp_path / "search.png")
    left = drawn().axes[0]
    (line,) = left.lines
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx(values)
    assert objective in left.get_ylabel()


def test_rho_by_block_and_unit(tmp_path, drawn):
    plot(recipe_of(RHOS), HISTORY, "kl", tmp_path / "search.png")
    right = drawn().axes[1]
    (image,) = right.images
    expected = np.array([[1.0, np.nan, 0.25], [0.5, 0.75, np.nan]])
    assert np.array_equal(image.get_array().filled(np.nan), expected, equal_nan=True)
    assert [label.get_text() for label in right.get_yticklabels()] == ["q_proj", "up_proj"]
    assert image.get_clim() == (0.25, 1)
    assert "a-model" in drawn().get_suptitle()
    assert "0.50" in drawn().get_suptitle()


def test_a_search_that_stays_near_1_is_told_apart_from_1(tmp_path, drawn):
    plot(recipe_of(dict.fromkeys(RHOS, 0.97)), HISTORY, "kl", tmp_path / "search.png")
    (image,) = drawn().axes[1].images
    assert image.get_clim() == (0.9, 1)


def test_the_same_search_is_the_same_picture(tmp_path):
    for name, rhos, history in [("a", RHOS, HISTORY), ("b", RHOS, HISTORY), ("c", dict.fromkeys(RHOS, 1.0), HISTORY)]:
        plot(recipe_of(rhos), history, "kl", tmp_path / f"{name}.png")
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("ending", [".svg", ""])
def test_endings(tmp_path, ending):
    plot(recipe_of(RHOS), [3.0], "kl", tmp_path / f"search{ending}")
    starts = {".svg": b"<?xml"}.get(ending, b"\x89PNG")
    assert (tmp_path / f"search{ending}").read_bytes().startswith(starts)


@pytest.mark.parametrize("name", ["file/search.png", "search.docx", "folder"])
def test_paths_that_cannot_be_drawn_to(tmp_path, name):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RSparseError, match=name.rpartition("/")[2]):
        plot(recipe_of(RHOS), HISTORY, "kl", tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
