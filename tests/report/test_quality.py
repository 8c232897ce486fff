"""Perplexity and task tables, against hand-worked values."""

from __future__ import annotations

import math

import pytest

from tests.report.records import quality

# Over dense: teal exp(0.2), sparse_only exp(0.3), each alike in all windows; wina exp(0.2) in the mean, far apart in windows.
DENSE, TEAL, ONLY, WINA = [1.0, 2.0], [1.2, 2.2], [1.3, 2.3], [1.0, 2.6]


def test_perplexities_by_hand(page):
    found = page(
        s__dense=quality("dense", 0.0, text="a.txt", nll=DENSE),
        s__teal=quality("teal", 0.5, text="a.txt", nll=TEAL, kl=0.25),
        s__only=quality("sparse_only", 0.5, text="a.txt", nll=ONLY, kl=0.5),
        s__wina=quality("wina", 0.5, text="a.txt", nll=WINA, kl=0.4),
    )  # fmt: skip
    head, group, dense, level, only, teal, wina = found.table("achieved", "KL")
    assert head == ["method", "achieved %", "read MB a token", "a 1,022 tokens", "KL nats a token"]
    assert (group, level) == (["dense"], ["50% asked"])
    assert dense == ["dense", "–", "200", "4.48", "–"]
    assert only == ["sparse_only", "49.0", "120 60.0% of dense", "6.05 ×1.35 (1.35 to 1.35)", "0.500"]
    assert teal == ["teal", "49.0", "120 60.0% of dense", "5.47 best ×1.22 (1.22 to 1.22)", "0.250 best"]
    # mean 0.3, standard error 0.3: the interval against the best holds 1
    low, high = (math.exp(0.3 + sign * 1.959964 * 0.3) for sign in (-1, 1))
    assert wina[3] == f"6.05 tie ×1.35 ({low:.2f} to {high:.2f})"


def test_policies_folders_and_windows_stand_apart(page):
    one, two = quality("teal", 0.5, text="a.txt", nll=TEAL), quality("wina", 0.5, text="a.txt", nll=ONLY)
    longer = quality("wina", 0.5, text="a.txt", nll=[*ONLY, 3.0])
    found = page(s__a=one, t__b=two, t__c=quality("teal", 0.5, text="a.txt", nll=TEAL, policy="decode"), t__d=longer)
    captions = [
        attrs["aria-label"]
        for tag, attrs in found.elements
        if attrs.get("role") == "region" and "windows" in attrs["aria-label"]
    ]
    assert [("policy all" in each, "Records of s" in each) for each in captions] == [
        (True, True),
        (True, False),
        (False, False),
    ]
    # the same text with more of it scored is another column, and no row is lost
    assert [row for row in found.tables[1] if row[0] == "wina"] == [["wina", "49.0", "120 60.0% of dense", "6.05", "9.03", "–"]]


def test_two_records_of_one_cell_are_two_rows(page):
    one, two = quality("teal", 0.5, text="a.txt", nll=TEAL, seed=0), quality("teal", 0.5, text="a.txt", nll=ONLY, seed=1)
    rows = page(s__first=one, s__second=two).table("KL")[2:]
    assert [row[0] for row in rows] == ["teal", "teal second"]


def test_a_mean_kl_over_other_texts_is_no_figure(page):
    found = page(
        a=quality("teal", 0.5, text="a.txt", nll=TEAL, kl=0.2), b=quality("teal", 0.5, text="b.txt", nll=TEAL, kl=0.4),
        c=quality("wina", 0.5, text="a.txt", nll=TEAL, kl=0.1),
    )  # fmt: skip
    assert [row[-1] for row in found.table("KL")[2:]] == ["0.300 best", "–"]


def test_tasks_by_hand(page):
    found = page(
        dense=quality("dense", 0.0, rows="1111111110", policy="dense"),  # 0.9
        teal=quality("teal", 0.5, rows="1111111000"),  # 0.7: half of what dense has above 0.5
        wina=quality("wina", 0.5, rows="1111100000"),  # 0.5: nothing
        decode=quality("teal", 0.5, rows="1111111110", policy="decode"),
    )  # fmt: skip
    everywhere, normed, decode, _ = found.tables[:4]
    assert everywhere[0] == [
        "method",
        "achieved %",
        "mean %",
        "from dense points",
        "kept %, above chance",
        "words acc, % n 10 chance 50",
    ]
    dense, teal, wina = everywhere[2], everywhere[4], everywhere[5]
    # 0.9: standard deviation over rows 0.3162, so ± 1.96 · 0.3162 / √10 = 0.196
    assert dense == ["dense", "0.0", "90.0", "–", "–", "90.0 ± 19.6"]
    assert teal[2] == "70.0 best"
    # two of ten rows lost: −0.2 with a standard error of 0.4216 / √10
    assert teal[3] == "−20.0 −46.1 to +6.1"
    assert teal[4].startswith("50.0 ")
    assert teal[5] == "70.0 best ± 29.9"
    assert wina[2] == "50.0 tie"  # two more rows lost, of ten
    assert wina[4].startswith("0.0 ")
    assert normed[-1][1] == "50.0"
    assert decode[2][0] == "dense"
    assert decode[4][2:4] == ["90.0", "+0.0 +0.0 to +0.0"]


def test_a_mean_over_other_tasks_is_no_figure(page):
    both = quality("teal", 0.5, rows="1100")
    both["metrics"]["tasks"]["more"] = both["metrics"]["tasks"]["words"]
    rows = page(a=both, b=quality("wina", 0.5, rows="1110")).tables[0]
    assert [row[2] for row in rows[2:]] == ["50.0", "–"]


@pytest.mark.parametrize("entry", [{"chance": [1]}, {"rows": {"acc": [float("nan"), 1.0]}}, {"rows": {"acc": []}}, {"rows": 3}])
def test_tasks_without_rows_that_pair_are_named_and_not_shown(page, entry):
    broken = quality("teal", 0.5, rows="1100")
    broken["metrics"]["tasks"]["words"] |= entry
    found = page(a=quality("teal", 0.4, rows="1100"), broken=broken)
    assert [row[0] for row in found.tables[0][1:]] == ["40% asked", "teal"]
    assert found.table("why")[1][-1] == "broken.json"


def test_a_level_of_its_own_is_not_headed_dense(page):
    found = page(
        dense=quality("dense", 0.0, rows="1111", policy="dense"), a=quality("relufication-level-own", 0.0, rows="1100")
    )
    tables = [[row[0] for row in table[1:]] for table in found.tables if table[0][0] == "method"]
    assert tables[:2] == [["dense", "dense", "a level of its own", "relufication (level own)"]] * 2


def test_headlines_name_the_closest_and_say_whether_the_ordering_holds(page):
    found = page(
        dense=quality("dense", 0.0, text="a.txt", nll=DENSE), only=quality("sparse_only", 0.5, text="a.txt", nll=TEAL),
        mine=quality("rsparse", 0.5, text="a.txt", nll=ONLY), far=quality("teal", 0.3, text="a.txt", nll=DENSE),
    )  # fmt: skip
    assert "Perplexity under all at 50% asked: sparse_only is the closest to dense of 2 methods, ×1.22" in found.text
    assert "at 49.0% achieved sparsity, reading 60.0% of its bytes" in found.text
    assert (
        "R-Sparse (here rsparse, not searched) ahead of sparse_only, does not hold here under all at 50% asked: ×1.105"
        in found.text
    )


def test_the_ordering_is_of_the_searched_recipe_where_there_is_one(page):
    found = page(
        only=quality("sparse_only", 0.5, text="a.txt", nll=ONLY), one=quality("rsparse", 0.5, text="a.txt", nll=ONLY),
        mine=quality("searched-population8", 0.5, text="a.txt", nll=TEAL),
        dense=quality("dense", 0.0, text="a.txt", nll=DENSE),
    )  # fmt: skip
    assert "R-Sparse (searched, population 8) ahead of sparse_only, holds here under all at 50% asked" in found.text


def test_the_ordering_is_of_one_study(page):
    studies = {"s": ("sparse_only", ONLY, "searched-samples1", ONLY), "t": ("sparse_only", TEAL, "searched", DENSE)}
    cells = {"s__dense": quality("dense", 0.0, text="a.txt", nll=DENSE)}
    for study, (without, theirs, name, mine) in studies.items():
        cells[f"{study}__a"] = quality(without, 0.5, text="a.txt", nll=theirs)
        cells[f"{study}__b"] = quality(name, 0.5, text="a.txt", nll=mine)
    said = "R-Sparse (searched) ahead of sparse_only, holds here under all at 50% asked: ×0.819 its perplexity"
    assert said in page(**cells).text


def test_headlines_pool_the_studies_of_the_same_weights(page):
    found = page(
        s__dense=quality("dense", 0.0, text="a.txt", nll=DENSE), s__only=quality("sparse_only", 0.5, text="a.txt", nll=ONLY),
        t__teal=quality("teal", 0.5, text="a.txt", nll=TEAL), u__b=quality("wina", 0.5, text="b.txt", nll=DENSE),
        v__c=quality("other", 0.5, text="a.txt", nll=DENSE, weights_sha="w2", model="tiny"),
        s__tasks=quality("dense", 0.0, rows="1111111110", policy="dense"), t__tasks=quality("teal", 0.5, rows="1111111000"),
    )  # fmt: skip
    assert "teal is the closest to dense of 2 methods, ×1.22 the dense model's (a)" in found.text
    assert "teal keeps 50.0%" in found.text


def test_a_method_on_more_texts_than_the_others_does_not_stand_alone(page):
    cells = {f"{name}_{text[0]}": quality(name, 0.5, text=text, nll=ONLY) for name in ("teal", "wina") for text in ("a", "b")}
    cells |= {f"searched_{text}": quality("searched", 0.5, text=text, nll=TEAL) for text in ("a", "b", "c", "d")}
    cells |= {f"dense_{text}": quality("dense", 0.0, text=text, nll=DENSE) for text in ("a", "b", "c", "d")}
    found = page(**cells)
    assert (
        "R-Sparse (searched) is the closest to dense of 3 methods, ×1.22 the dense model's (the geometric mean over 2 texts)"
        in found.text
    )


def test_a_plot_for_each_text_where_there_are_levels(page):
    cells = {
        f"{preset}{level:g}".replace(".", "_"): quality(preset, level, text="a.txt", nll=TEAL)
        for preset in ("teal", "wina")
        for level in (0.4, 0.5)
    }
    cells["far"] = quality("low_rank_only", 0.4, text="a.txt", nll=[9.0, 9.0])
    found = page(dense=quality("dense", 0.0, text="a.txt", nll=DENSE), **cells)
    labels = [attrs["aria-label"] for tag, attrs in found.elements if tag == "svg"]
    assert labels == ["tiny, a: perplexity over bytes read for low_rank_only, teal, wina"]
    assert "above the scale: low_rank_only" in found.text
