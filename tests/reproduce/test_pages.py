"""A page of a model's tables, and the paper's claims over models, on records written by hand."""

from __future__ import annotations

from rsparse.reproduce.pages import all_results, claims_table, has_records, page
from rsparse.reproduce.results import TASKS, Results
from rsparse.reproduce.run import refuse
from rsparse.reproduce.table import BASE, Row, Variant
from tests.reproduce.requests import ALL, LAST, request, table, write_tasks, write_text

INT4 = Variant("int4", "4 bits", weight_bits=4)
CHOICE = request().choice.__class__((2,), (1,))


def tables_of(folder, model="tiny"):
    return all_results(request(choice=CHOICE, model=model), [folder])


def write(folder, tables, label, level, policy, scores):
    """In the eight tasks alike; `label` as the main table or the oracle's has it."""
    found = {(line.method.label, line.level): line for name in ("main", "oracle") for line in tables[name].lines}
    rows = {names[0]: scores for names in TASKS.values()}
    line = found[label, level]
    write_tasks(folder, tables["main"].request, line, policy, level or None, {"rho": [1.0]}, **rows)


def test_a_table_counts_where_what_sets_it_apart_was_run(tmp_path):
    mine = table(Row("teal", (0.4,), (BASE, INT4)), texts=True)
    results = Results(mine, request(), tmp_path)
    for line in results.lines[:3]:  # dense, teal, and dense of 4 bits
        write_text(tmp_path, results.request, line, ALL, "one.txt", [1.0, 2.0], 0.4)
    assert [line.label for line in results.lines[:3]] == ["dense", "teal", "dense, 4 bits"]
    assert not has_records(Results(mine, request(), tmp_path))
    assert has_records(Results(table(Row("teal", (0.4,)), texts=True), request(), tmp_path))
    write_text(tmp_path, results.request, results.lines[3], ALL, "one.txt", [1.0, 2.0], 0.4)
    assert has_records(Results(mine, request(), tmp_path))


def test_a_page_has_the_tables_that_ran_and_says_once_what_they_share(tmp_path):
    tables = tables_of(tmp_path)
    write(tmp_path, tables, "dense", 0.0, ALL, "1100")
    write(tmp_path, tables, "searched", 0.5, ALL, "1100")
    write(tmp_path, tables, "dejavu", 0.5, ALL, "1000")
    text = page("Mine", tables_of(tmp_path), ["A head."])
    assert text.startswith("# Mine\n\nA head.\n\ntiny, float32, on a CPU. ")
    assert [line[3:].partition(":")[0] for line in text.splitlines() if line.startswith("## ")] == [
        "Main results", "Own level", "Oracle", "Parts", "Searched against uniform",
    ]  # fmt: skip
    assert "- Not run on this model: `generation`, `quantised`, `samples`, `search-size`.\n" in text
    for said in ("tiny, float32, on a CPU", "What the search chose: R-Sparse (searched) at 50% rho 1", "shares of the weights"):
        assert text.count(said) == 1
    assert text.count("Published figures are of other models, each named") == 2  # the ablation's, and the others' together
    assert text.index("The oracle reads all weights") > text.index("## Oracle")  # said of one table alone
    assert text.count("Published figures for this table are not at hand.") == 1
    assert text.endswith("at hand.\n")


def test_claims_by_policy_and_model(tmp_path):
    one, two = tables_of(tmp_path, "one"), tables_of(tmp_path, "two")
    for policy in (LAST, ALL):
        write(tmp_path, one, "searched", 0.5, policy, "11110000")
        write(tmp_path, one, "dejavu", 0.5, policy, "11110000" if policy == ALL else "00000000")
    griffin = next(line for line in one["main"].lines if (line.method.name, line.level) == ("griffin", 0.5))
    refuse(one["main"].request.cell(griffin, ALL, None), ValueError("it has none"), tmp_path, {})
    lines = claims_table({"first": tables_of(tmp_path, "one"), "second": tables_of(tmp_path, "two")})
    assert lines[0] == "| the paper has | token policy | first | second |"
    name = "R-Sparse (searched) over dejavu at 50%, accuracy"
    assert lines[2:6] == [
        "| R-Sparse (searched) over griffin at 50%, accuracy | last_fraction:0.1 | not run | not run |",
        "| R-Sparse (searched) over griffin at 50%, accuracy | all | not possible | not run |",
        f"| {name} | last_fraction:0.1 | **holds**: +50.00 points, +36.90 to +63.10 | not run |",
        f"| {name} | all | **no difference**: the search chose rho 1 for every linear | not run |",
    ]
    assert lines[6:9] == [
        "",
        "- Under `last_fraction:0.1`, of 1 comparisons 1 hold.",
        "- Under `all`, of 1 comparisons 1 without difference.",
    ]
    assert lines[9].startswith("- Not run on any model: R-Sparse (searched) over cats at 40%, accuracy; ")
    assert name not in lines[9]
    nothing = claims_table({"second": tables_of(tmp_path, "two")})
    assert nothing[3] == "- Under `last_fraction:0.1`, nothing can be compared."
    assert len(two) == len(one) == 9
