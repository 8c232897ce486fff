"""Whether the paper's ordering holds, on records written by hand."""

from __future__ import annotations

import pytest

from rsparse.reproduce.ordering import outcomes, pairs, verdict_line
from rsparse.reproduce.results import Results
from rsparse.reproduce.run import refuse
from rsparse.reproduce.table import Order, Row
from tests.reproduce.requests import ALL, LAST, request, table, write_tasks, write_text

MAIN = table(
    Row("searched", (0.4, 0.5)), Row("cats", (0.4, 0.5)), Row("griffin", (0.4, 0.5)), Row("rsparse", (0.5,)),
    Row("teal", (0.5,)),
    Row("wina", (0.5,)),
    tasks=True, published=("tasks", "wina"),
)  # fmt: skip


def results_of(mine, folder, **changes):
    return Results(mine, request(choice=request().choice.__class__((2,), (1,)), **changes), folder)


def line(results, label, level):
    return next(each for each in results.lines if each.method.label == label and each.level == level)


def test_pairs_are_what_the_paper_ranks_at_that_level(tmp_path):
    found = [(pair.better.method.name, pair.worse.method.name, pair.better.level) for pair in pairs(results_of(MAIN, tmp_path))]
    assert sorted(found) == [("searched", "cats", 0.4), ("searched", "griffin", 0.5)]  # not wina's, nor of rsparse's one rho


def test_a_level_that_is_not_stated_is_every_level_and_a_rank_of_three_is_two_pairs(tmp_path):
    mine = table(
        *(Row(name, (0.4, 0.5)) for name in ("low_rank_only", "sparse_only", "searched")), tasks=True, published=("parts",)
    )
    found = {(pair.better.method.name, pair.worse.method.name, pair.better.level) for pair in pairs(results_of(mine, tmp_path))}
    assert found == {
        (better, worse, level)
        for better, worse in (("searched", "sparse_only"), ("sparse_only", "low_rank_only"))
        for level in (0.4, 0.5)
    }


def test_lower_is_better_for_perplexity(tmp_path):
    mine = table(*(Row(f"searched:population={n}", (0.5,)) for n in (8, 16, 32, 128)), texts=True, published=("search_size",))
    found = [(dict(pair.better.method.options)["population"], dict(pair.worse.method.options)["population"])
             for pair in pairs(results_of(mine, tmp_path))]  # fmt: skip
    assert sorted(found) == [("128", "16"), ("16", "8"), ("32", "128")]


@pytest.mark.parametrize(("populations", "run"), [((8, 16, 32), ()), ((8, 16, 32, 128), (8, 16, 32))])
def test_what_stands_on_both_sides_of_a_rank_that_was_left_out_is_a_pair(tmp_path, populations, run):
    mine = table(*(Row(f"searched:population={n}", (0.5,)) for n in populations), texts=True, published=("search_size",))
    results = results_of(mine, tmp_path)
    for each in results.lines:
        if dict(each.method.options).get("population") in map(str, run):
            write_text(tmp_path, results.request, each, ALL, "one.txt", [3.0, 4.0])
    found = {(dict(pair.better.method.options)["population"], dict(pair.worse.method.options)["population"])
             for pair in pairs(results)}  # fmt: skip
    left_out = {("32", "128"), ("128", "16")} if 128 in populations else set()
    assert found == {("32", "16"), ("16", "8")} | left_out


@pytest.mark.parametrize(
    ("better", "worse", "says"),
    [
        ("1" * 90 + "0" * 10, "1" * 60 + "0" * 40, "it holds for A over cats at 40% (+30.00 points, +20.97 to +39.03)"),
        ("1" * 60 + "0" * 40, "1" * 90 + "0" * 10, "it does not hold: it is reversed for A over cats at 40% (-30.00"),
        ("10" * 50, "01" * 49 + "00", "it cannot be told for A over cats at 40% (+1.00 points"),
    ],
)  # fmt: skip
def test_verdicts_on_tasks(tmp_path, better, worse, says):
    results = results_of(MAIN, tmp_path, policies=(LAST,), levels=(0.4,))
    write_tasks(tmp_path, results.request, line(results, "searched", 0.4), LAST, piqa=better)
    write_tasks(tmp_path, results.request, line(results, "cats", 0.4), LAST, piqa=worse)
    found = verdict_line(outcomes(results))
    assert found.startswith("Paper's ordering: under last_fraction:0.1 ")
    assert says.replace("A over", "R-Sparse (searched) over") in found


def test_unequal_bytes_are_said_and_what_is_missing_too(tmp_path):
    results = results_of(MAIN, tmp_path)
    for name, scores, achieved in (("searched", "10" * 9, 0.4), ("cats", "01" * 9, 0.43)):
        write_tasks(tmp_path, results.request, line(results, name, 0.4), ALL, achieved, piqa=scores)
    found = verdict_line(outcomes(results))
    assert ", at 40.0% and 43.0% achieved)" in found
    assert "not run for R-Sparse (searched) over griffin at 50%" in found.partition("; under all ")[2]


def test_what_was_not_run_is_said_once_where_nothing_was(tmp_path):
    assert verdict_line(outcomes(results_of(MAIN, tmp_path))) == "Paper's ordering: not run."


def test_what_a_method_refuses_is_not_told_at_length(tmp_path):
    results = results_of(MAIN, tmp_path, policies=(ALL,))
    reason = "griffin chooses its neurons from a dense prompt, and token policy all has none"
    refuse(results.request.cell(line(results, "griffin", 0.5), ALL, None), ValueError(reason), tmp_path, {})
    found = outcomes(results)
    assert verdict_line(found).endswith("not run for R-Sparse (searched) over cats at 40%, not possible for "
                                        "R-Sparse (searched) over griffin at 50%.")  # fmt: skip
    assert [each.detail for each in found["all"]] == ["not run", reason]


@pytest.mark.parametrize(("rho", "why"), [([1.0], "the search chose rho 1 for every linear"), ([0.9, 1.0], "in any row")])
def test_lines_without_any_difference(tmp_path, rho, why):
    mine = table(Row("searched", (0.5,)), Row("sparse_only", (0.5,)), tasks=True, orders=(Order("searched", "sparse_only"),))
    results = results_of(mine, tmp_path, policies=(ALL,))
    for name, config in (("searched", {"rho": rho}), ("sparse_only", {"rho": [1.0]})):
        write_tasks(tmp_path, results.request, line(results, name, 0.5), ALL, 0.5, config, piqa="1100")
    assert verdict_line(outcomes(results)) == (
        f"Paper's ordering: under all it makes no difference for R-Sparse (searched) over sparse_only at 50% ({why})."
    )


def test_windows_without_any_difference_and_a_bound_next_to_1(tmp_path):
    mine = table(Row("searched", (0.5,)), Row("teal", (0.5,)), texts=True, orders=(Order("searched", "teal"),))
    results = results_of(mine, tmp_path)
    for policy, shifts in ((ALL, (0.0, 0.0)), (LAST, (2e-5, 2.2e-5))):
        write_text(tmp_path, results.request, line(results, "searched", 0.5), policy, "one.txt", [3.0, 4.0])
        write_text(tmp_path, results.request, line(results, "teal", 0.5), policy, "one.txt", [3 + shifts[0], 4 + shifts[1]])
    found = verdict_line(outcomes(results))
    assert "it makes no difference for R-Sparse (searched) over teal at 50% (in any window)" in found
    assert "it holds for R-Sparse (searched) over teal at 50% (perplexity × 0.999979, " in found


def test_claims_without_figures_are_told_by_perplexity(tmp_path):
    mine = table(Row("searched", (0.5,)), Row("teal", (0.5,)), texts=True, orders=(Order("searched", "teal"),))
    results = results_of(mine, tmp_path)
    for name, shift in (("searched", 0.0), ("teal", 0.1)):
        for policy in (ALL, LAST):
            sign = 1 if policy == ALL else -1
            nll = [3 + sign * shift, 4 + sign * shift * 1.01, 5 + sign * shift]
            write_text(tmp_path, results.request, line(results, name, 0.5), policy, "one.txt", nll)
    found = verdict_line(outcomes(results))
    assert "under all it holds for R-Sparse (searched) over teal at 50% (perplexity × 0.9045" in found
    assert "under last_fraction:0.1 it does not hold: it is reversed for R-Sparse (searched) over teal" in found


def test_nothing_published(tmp_path):
    assert verdict_line(outcomes(results_of(table(Row("teal", (0.5,)), tasks=True), tmp_path))) == (
        "Paper's ordering: none is published for these rows."
    )
