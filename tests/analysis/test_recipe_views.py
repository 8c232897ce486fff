"""A recipe as text and as a picture."""

from __future__ import annotations

import dataclasses

import matplotlib.image
import pytest

from rsparse.analysis.recipe_plot import plot_recipe
from rsparse.analysis.recipe_table import HEADER, block_and_kind, by_kind, kind_rows, unit_rows
from rsparse.errors import RSparseError
from rsparse.recipe import Recipe, UnitRecipe


def unit(name, sparsity, rho, rank, threshold, criterion="magnitude"):
    return UnitRecipe((name,), (24,), 48, sparsity, rho, (rank,), criterion, threshold)


@pytest.fixture
def recipe():
    k, d = "model.layers.{}.self_attn.k_proj", "model.layers.{}.mlp.down_proj"
    units = {
        k.format(10): unit(k.format(10), 0.5, 0.6, 3, 0.25),
        k.format(2): unit(k.format(2), 0.25, 1.0, 0, 0.0125, "column_norm"),
        d.format(2): unit(d.format(2), 0.5, 0.6, 3, None),
    }
    return Recipe("llama", units, model="a-model")


def test_names():
    assert block_and_kind("model.layers.31.self_attn.q_proj") == (31, "self_attn.q_proj")
    assert block_and_kind("model.layers.3.qkv") == (3, "qkv")


def test_units_by_kind_in_the_order_of_blocks(recipe):
    kinds = by_kind(recipe)
    assert list(kinds) == ["self_attn.k_proj", "mlp.down_proj"]
    assert list(kinds["self_attn.k_proj"]) == [2, 10]
    assert kinds["self_attn.k_proj"][10] is recipe.units["model.layers.10.self_attn.k_proj"]


def test_a_row_for_each_kind(recipe):
    header, *rows = kind_rows(recipe)
    assert header == HEADER
    assert header.split() == ["unit", "in", "out", "sparsity", "rho", "rank", "threshold", "criterion"]
    assert [" ".join(row.split()) for row in rows] == [
        "self_attn.k_proj 48 24 0.250 to 0.500 0.600 to 1.000 0 to 3 0.0125 to 0.25 column_norm, magnitude",
        "mlp.down_proj 48 24 0.500 0.600 3 none magnitude",
    ]
    assert len({row.index("column_norm" if "column" in row else "magnitude") for row in rows}) == 1


def test_a_row_for_each_unit(recipe):
    assert [" ".join(row.split()) for row in list(unit_rows(recipe))[1:]] == [
        "2 self_attn.k_proj 48 24 0.250 1.000 0 0.0125 column_norm",
        "10 self_attn.k_proj 48 24 0.500 0.600 3 0.25 magnitude",
        "2 mlp.down_proj 48 24 0.500 0.600 3 none magnitude",
    ]


def test_the_plot_is_a_readable_png(recipe, tmp_path):
    path = tmp_path / "new" / "recipe.png"
    plot_recipe(recipe, path)
    image = matplotlib.image.imread(path)
    height, width, _ = image.shape
    assert width >= 800
    assert height >= 300
    assert image.std() > 0.05
    assert len({tuple(pixel) for pixel in image.reshape(-1, image.shape[2])[::7].tolist()}) > 20


def test_the_plot_shows_the_levels(recipe, tmp_path):
    plot_recipe(recipe, tmp_path / "a.png")
    units = {name: dataclasses.replace(one, sparsity=0.1) for name, one in recipe.units.items()}
    plot_recipe(dataclasses.replace(recipe, units=units), tmp_path / "b.png")
    plot_recipe(recipe, tmp_path / "again.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_levels_are_told_apart_from_0_to_1_and_rho_from_90_percent(recipe, tmp_path, drawn):
    units = {name: dataclasses.replace(one, rho=0.97) for name, one in recipe.units.items()}
    plot_recipe(dataclasses.replace(recipe, units=units), tmp_path / "a.png")
    level, rho = (axis.images[0].get_clim() for axis in drawn().axes[:2])
    assert (level, rho) == ((0, 1), (0.9, 1))


def test_a_dense_recipe_can_be_drawn(tmp_path):
    name = "model.layers.0.mlp.up_proj"
    plot_recipe(Recipe("llama", {name: UnitRecipe((name,), (24,), 48, 0.0)}), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_the_file_that_is_named_is_the_one_written(recipe, tmp_path):
    plot_recipe(recipe, tmp_path / "picture")
    assert [path.name for path in tmp_path.iterdir()] == ["picture"]


@pytest.mark.parametrize("name", ["file/recipe.png", "recipe.docx"])
def test_paths_that_cannot_be_drawn_to(recipe, tmp_path, name):
    (tmp_path / "file").write_text("text")
    with pytest.raises(RSparseError, match=name.rpartition("/")[2]):
        plot_recipe(recipe, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
