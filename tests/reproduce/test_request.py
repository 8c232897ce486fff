"""What a request makes of a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsparse.errors import RSparseError
from rsparse.methods import MethodSpec
from rsparse.reproduce.request import Line, check_filters
from rsparse.reproduce.table import BASE, Row, Variant
from tests.reproduce.requests import ALL, LAST, request, table

FEW, INT4, GENERATED = (
    Variant("few", "few", windows=2),
    Variant("int4", "4 bits", weight_bits=4),
    Variant("made", generates=True),
)


def names(asked, mine):
    return {(variant.name, cell.path(Path("x")).name) for variant, cell in asked.cells(mine)}


def test_cells_of_tasks_and_texts_under_each_policy():
    mine = table(Row("sparse_only", (0.4,)), tasks=True, texts=True)
    assert names(request(), mine) == {
        ("", name)
        for name in (
            "dense-dense-tasks.json", "dense-all-one.json", "dense-last_fraction0.1-one.json",
            "sparse_only-s0.4-all-tasks.json", "sparse_only-s0.4-last_fraction0.1-tasks.json",
            "sparse_only-s0.4-all-one.json", "sparse_only-s0.4-last_fraction0.1-one.json",
        )
    }  # fmt: skip
    assert all("tasks" not in name for _, name in names(request(), table(Row("teal", (0.4,)), texts=True)))


def test_a_variant_has_a_dense_model_of_its_own_where_that_differs():
    lines = request().lines(table(Row("teal", (0.4,), (BASE, FEW, INT4)), texts=True))
    assert [(line.variant.name, line.label) for line in lines] == [
        ("", "dense"), ("", "teal"), ("few", "teal, few"), ("int4", "dense, 4 bits"), ("int4", "teal, 4 bits"),
    ]  # fmt: skip


def test_tasks_that_generate_are_a_part_of_their_own():
    mine = table(Row("teal", (0.4,), (BASE, GENERATED)), texts=True)
    asked = request(generated={"sums": "y"}, texts=())
    assert names(asked, mine) == {
        ("made", f"{name}-tasks.json") for name in ("dense-dense", "teal-s0.4-all", "teal-s0.4-last_fraction0.1")
    }
    assert request(texts=()).lines(mine) == []
    assert asked.settings_of(GENERATED).tasks == {"sums": "y"}
    assert asked.settings_of(BASE).tasks == {"piqa": "x"}
    assert asked.settings_of(FEW).calibration_tokens == 48


def test_the_papers_search_takes_options_but_for_what_a_table_varies():
    spec = request().spec("searched:population=8,generations=9", table(varies=("population",)))
    assert dict(spec.options) == {"population": "8", "generations": "1", "samples": "2"}
    assert request().spec("teal", table()) == MethodSpec.parse("teal")


def test_filters():
    mine = table(Row("teal", (0.4, 0.5)), Row("rsparse:rho=0.9", (0.5,)), Row("relufication:level=own", (0.0,)), tasks=True)
    only = request(methods=("rsparse", "relufication"), levels=(0.4,))
    assert [line.label for line in only.lines(mine)] == ["dense", "relufication (level own)"]
    check_filters(only, [mine])
    for changes, says in (
        ({"methods": ("wina",)}, "no table here has method 'wina'; they have relufication, rsparse, teal"),
        ({"levels": (0.6,)}, "no table here has level 0.6; they have 0.4, 0.5"),
        ({"methods": ("rsparse",), "levels": (0.4,)}, "nothing is left of the tables"),
    ):
        with pytest.raises(RSparseError, match=says):
            check_filters(request(**changes), [mine])


def test_where_a_dense_models_figures_are():
    dense, sparse = request().lines(table(Row("teal", (0.4,)), tasks=True, texts=True))
    assert request().cell(dense, LAST, None) == request().cell(dense, ALL, None)
    assert request().cell(dense, LAST, "one.txt") != request().cell(dense, ALL, "one.txt")
    assert request().cell(sparse, LAST, None) != request().cell(sparse, ALL, None)


def test_labels_say_the_options():
    specs = ("searched", "searched:population=8,generations=9", "rsparse:rho=0.9,fit=svd", "teal")
    assert [Line(BASE, MethodSpec.parse(spec), 0.5).label for spec in specs] == [
        "R-Sparse (searched)", "R-Sparse (searched, generations 9, population 8)", "rsparse (fit svd, rho 0.9)", "teal",
    ]  # fmt: skip
