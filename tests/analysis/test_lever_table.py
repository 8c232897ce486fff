"""Levers beside each other, by hand."""

from __future__ import annotations

from rsparse.analysis.lever_table import is_ablation, lever_tables
from tests.analysis.gaps import BASE, TEXTS, record, texts
from tests.analysis.tables import cells

ALONE = "joint-criterion-magnitude"


def tables(records):
    lines = lever_tables([*BASE, *records], TEXTS, 0.5)
    return [cells(line) for line in lines if line.startswith("|")]


def test_the_share_closed_by_lever_and_what_it_took():
    """Sparse-only loses 4 of 10 and 10 of 20: 12 and 24 close (0.5 + 0.6) / 2, 13 and 27.5 a quarter of each."""
    mine = texts(ALONE, 0.5, 12.0, 24.0, recipe=40.4)
    for each in mine:
        each["config"]["recipe_peak_bytes"] = 2_340_000_000
    heads, _, first, second = tables([*mine, *texts("teal", 0.5, 13.0, 27.5, recipe=9.6)])
    assert heads == ["levers", "method", "tiny", "mean", "s, recipe", "s, fit", "GB, recipe", "GB, fit"]
    assert first == ["levels within each block (`fast`)", "`teal`", "25.0%", "25.0%", "10", "", "", ""]
    assert second == ["levels, bytes, and low rank by kind", f"`{ALONE}`", "55.0%", "55.0%", "40", "", "2.3", ""]


def test_the_leagues_stand_apart():
    lines = lever_tables([*BASE, *texts(ALONE, 0.5, 12.0, 24.0), *texts("best", 0.5, 11.0, 21.0, fit=30.0)], TEXTS, 0.5)
    assert [line for line in lines if line.startswith("**")] == ["**Nothing fitted by gradient, 50%**", "**Compensated, 50%**"]


def test_a_mean_is_over_all_models_or_not_given():
    """One model has both recipes, the other one of them, without its memory."""
    other = [*BASE, *texts(ALONE, 0.5, 12.0, 25.0, recipe=20)]
    other = [each | {"config": each["config"] | {"model": "other.gguf"}} for each in other]
    mine = texts(ALONE, 0.5, 12.0, 24.0, recipe=40)
    for each in mine:
        each["config"]["recipe_peak_bytes"] = 2e9
    _, _, first, second = tables([*mine, *texts("joint-rounds0", 0.5, 14.0, 30.0, recipe=3), *other])
    assert first[2:] == ["50.0%", "55.0%", "52.5%", "30", "", "", ""]
    assert second[2:] == ["", "0.0%", "", "", "", "", ""]


def test_a_model_without_one_of_the_texts_is_empty():
    other = [*BASE, *texts(ALONE, 0.5, 12.0, 25.0)[:1]]
    other = [each | {"config": each["config"] | {"model": "other.gguf"}} for each in other]
    _, _, row = tables([*texts(ALONE, 0.5, 12.0, 24.0), *other])
    assert row[2:5] == ["", "55.0%", ""]


def test_other_levels_and_policies_are_left_out():
    decoded = [record(ALONE, 0.5, text, "decode", perplexity=10.0) for text in TEXTS]
    assert tables([*texts(ALONE, 0.6, 12.0, 24.0), *decoded]) == []


def test_presets_are_no_ablation():
    assert [is_ablation(record(name, 0.5, "a.txt")) for name in (ALONE, "sparse_only-compensate", "best", "teal", "wina")] == [
        True, True, False, False, False,
    ]  # fmt: skip
