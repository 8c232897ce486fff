"""What a reader sees, on records written by hand."""

from __future__ import annotations

from rsparse.benchmark.failures import note
from rsparse.reproduce.notes import notes
from rsparse.reproduce.results import TASKS, Results
from rsparse.reproduce.run import refuse
from rsparse.reproduce.table import BASE, Row, Variant
from rsparse.reproduce.view import markdown, metrics
from rsparse.token_policy import TokenPolicy
from tests.reproduce.requests import ALL, LAST, request, table, write_tasks, write_text

MAIN = table(Row("searched", (0.5,)), Row("relufication", (0.5,)), tasks=True, texts=True, published=("tasks", "wina"))
CHOICE = request().choice.__class__((2,), (1,))
EIGHT = {names[0]: "1100" for names in TASKS.values()}


def results_of(folder, mine=MAIN, **changes):
    return Results(mine, request(choice=CHOICE, **changes), folder)


def rows(text, title):
    """Cells by line of the table below a heading, its head first."""
    lines = text.split(f"### {title}\n\n")[1].split("\n\n")[0].splitlines()
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}


def filled(folder, **rows_of):
    results = results_of(folder)
    dense, searched, relu = results.lines
    write_tasks(folder, results.request, dense, ALL, **(rows_of or EIGHT))
    for policy in (LAST, ALL):
        write_tasks(folder, results.request, searched, policy, 0.5, **(rows_of or EIGHT))
        write_tasks(folder, results.request, relu, policy, 0.53, **(rows_of or EIGHT))
        for line in results.lines:
            write_text(
                folder, results.request, line, policy, "one.txt", [1.0, 2.0], 0.0 if line.dense else 0.5, kl_to_dense=0.25
            )
    return results


def test_published_figures_stand_beside_those_of_their_own_policy_alone(tmp_path):
    found = rows(markdown(filled(tmp_path)), "Mean over the tasks, %")
    assert found["method"] == [
        "asked", "last_fraction:0.1", "achieved", "published: Llama-2-7B", "published: Gemma-7B", "published: Llama-3-8B",
        "published: Mistral-7B", "all", "achieved",
    ]  # fmt: skip
    assert found["R-Sparse (searched)"] == ["50%", "50.00", "50.0%", "64.06", "63.31", "66.20", "68.39", "50.00", "50.0%"]
    assert found["dense"] == ["", "50.00", "", "65.88", "", "69.44", "69.89", "50.00", ""]
    assert found["relufication"][3:7] == [""] * 4


def test_under_another_policy_another_source_is_shown(tmp_path):
    results = results_of(tmp_path, policies=(TokenPolicy("last_fraction", 0.99),))
    found = rows(markdown(results), "Mean over the tasks, %")
    assert found["method"][3:] == ["published: Llama-2-7B (wina)", "published: Llama-3-8B (wina)", "published: Mistral (wina)"]
    assert found["R-Sparse (searched)"] == ["50%", "not run", "", "67.03", "68.66", "68.70"]
    assert "not shown" in markdown(results_of(tmp_path, policies=(ALL,)))
    assert "64.06" not in markdown(results_of(tmp_path, policies=(ALL,)))


def test_a_published_mean_is_over_the_tasks_that_ran(tmp_path):
    found = rows(markdown(filled(tmp_path, piqa="1100", sciq="1110")), "Mean over the tasks, %")
    assert found["R-Sparse (searched)"][1] == "62.50"
    assert found["R-Sparse (searched)"][3:7] == [f"{(77.31 + 93.90) / 2:.2f}", f"{(78.35 + 87.6) / 2:.2f}", "", ""]


def test_a_published_mean_beside_a_row_that_has_not_run_is_over_the_same_tasks(tmp_path):
    results = results_of(tmp_path)
    write_tasks(tmp_path, results.request, results.lines[0], ALL, piqa="1100", sciq="1110")  # the dense model's alone
    text = markdown(results)
    found = rows(text, "Mean over the tasks, %")["R-Sparse (searched)"]
    assert (found[1], found[3:7]) == ("not run", [f"{(77.31 + 93.90) / 2:.2f}", f"{(78.35 + 87.6) / 2:.2f}", "", ""])
    by_task = rows(text, "By task, %, token policy last_fraction:0.1")
    assert by_task["*published: R-Sparse, Llama-2-7B*"] == ["50%", "77.3", "93.9", f"{(77.31 + 93.90) / 2:.2f}", ""]


def test_by_task(tmp_path):
    text = markdown(filled(tmp_path))
    found = rows(text, "By task, %, token policy last_fraction:0.1")
    assert found["method"] == ["asked", *TASKS, "mean", "difference from dense, points (95 %)"]
    assert found["R-Sparse (searched)"] == ["50%", *["50.0"] * 8, "50.00", "+0.00 (+0.00 to +0.00)"]
    assert found["*published: R-Sparse, Llama-2-7B*"][4:7] == ["31.4", "54.3", "72.8"]
    assert "published" not in "".join(rows(text, "By task, %, token policy all"))


def test_hellaswag_is_the_spread_one_where_both_ran(tmp_path):
    results = filled(tmp_path, hellaswag="1111", hellaswag_spread="1000", piqa="1000", words="1111")
    assert rows(markdown(results), "Mean over the tasks, %")["dense"][1] == "25.00"


def test_perplexity(tmp_path):
    found = rows(markdown(filled(tmp_path)), "Perplexity")
    columns = [(f"one, {policy}", f"mean KL, {policy}", "achieved") for policy in ("last_fraction:0.1", "all")]
    assert found["method"] == ["asked", *columns[0], *columns[1]]  # no published accuracy among them
    assert found["R-Sparse (searched)"][:4] == ["50%", "9.00", "0.2500", "50.0%"]


def test_published_perplexities_stand_by_the_number_that_a_table_varies(tmp_path):
    rows_of = [Row(f"searched:population={n},generations=10", (0.5,)) for n in (2, 8, 32)]
    mine = table(*rows_of, texts=True, varies=("population",), published=("search_size",))
    found = rows(markdown(results_of(tmp_path, mine)), "Perplexity")
    assert found["method"][4] == "published: model not stated, level not stated"
    assert [cells[4] for cells in found.values()][2:] == ["", "", "9.85", "6.32"]  # dense, 2, 8, 32


def test_the_verdict_comes_first_and_missed_levels_are_explained(tmp_path):
    text = markdown(filled(tmp_path))
    assert text.splitlines()[4].startswith("Paper's ordering: ")
    for policy in ("last_fraction:0.1", "all"):
        missed = (
            f"- Not at equal bytes under {policy} on the tasks: achieved is more than a point off in relufication 53.0% for 50%"
        )
        assert f"{missed} (what ReLU makes 0 is" in text
    assert "on the texts: achieved" not in text
    assert "arXiv 2504.19449" in text


def test_levels_missed_are_told_by_policy_and_a_methods_together(tmp_path):
    mine = table(Row("teal", (0.4, 0.5, 0.6)), Row("wina", (0.4,)), tasks=True)
    results = results_of(tmp_path, mine)
    for line, achieved in zip(results.lines[1:], (0.38, 0.491, 0.63, 0.3), strict=True):
        write_tasks(tmp_path, results.request, line, ALL, achieved, piqa="10")
    missed = [line for line in notes(results) if "equal bytes" in line]
    assert missed == [
        "Not at equal bytes under all: achieved is more than a point off in teal 38.0% for 40%, 63.0% for 60%; "
        "wina 30.0% for 40%."
    ]


def test_a_level_missed_on_texts_alone_is_named(tmp_path):
    results = filled(tmp_path)
    write_text(tmp_path, results.request, results.lines[1], ALL, "one.txt", [1.0, 2.0], 0.47)
    text = markdown(results_of(tmp_path))
    missed = (
        "- Not at equal bytes under all on the texts: achieved is more than a point off in R-Sparse (searched) 47.0% for 50%."
    )
    assert missed in text.splitlines()


def test_levels_missed_by_lines_of_tasks_and_lines_of_texts_are_told_apart(tmp_path):
    wrote = Variant("wrote", "generated", generates=True)
    results = results_of(tmp_path, table(Row("teal", (0.5,), (BASE, wrote)), texts=True), generated={"lead": "x"})
    for line in results.lines:
        if not line.dense and line.variant == wrote:
            write_tasks(tmp_path, results.request, line, ALL, 0.47, lead="10")
        elif not line.dense:
            write_text(tmp_path, results.request, line, ALL, "one.txt", [1.0, 2.0], 0.48)
    assert [line.partition(": ")[0] for line in notes(results) if "equal bytes" in line] == [
        "Not at equal bytes under all on the tasks", "Not at equal bytes under all on the texts",
    ]  # fmt: skip


def test_what_the_search_chose(tmp_path):
    results = results_of(tmp_path, table(Row("searched", (0.4, 0.5, 0.6)), Row("rsparse", (0.5,)), tasks=True))
    kinds = {"q_proj": {"ranked": 0.5}, "k_proj": {"ranked": 0.0}, "v_proj": {"ranked": 1.0}}
    one, some = {"rho": [1.0]}, {"rho": [0.774, 0.9, 1.0], "rank_share": 0.0204, "kinds": kinds}
    for line, config in zip(results.lines[1:], (one, some, one, some), strict=True):
        write_tasks(tmp_path, results.request, line, ALL, 0.5, config, piqa="10")
    assert notes(results)[0] == (
        "What the search chose: R-Sparse (searched) at 40% and 60% rho 1 for every linear, which is sparse-only; at 50% "
        "rho 0.77 to 1, factors 2.0% of what a sparse row reads (q_proj in 50%, v_proj in 100% of the blocks)."
    )


def test_levels_past_a_floor_are_one_line(tmp_path):
    results = results_of(tmp_path, table(Row("cats", (0.5, 0.6)), tasks=True), policies=(ALL,))
    for line in results.lines[1:]:
        reason = f"sparsity {line.level:g} is past CATS's floor: it drops at most 0.475 on this model"
        refuse(results.request.cell(line, ALL, None), ValueError(reason), tmp_path, {})
    assert "No figure for cats at 50%, 60%: past CATS's floor: it drops at most 0.475 on this model." in notes(results)


def test_all_devices_and_the_rows_of_a_task_are_named(tmp_path):
    results = filled(tmp_path, piqa="1100", hellaswag_spread="110")
    path = results.request.cell(results.lines[1], ALL, None).path(tmp_path)
    path.write_text(path.read_text().replace("a CPU", "another"))
    text = markdown(results_of(tmp_path))
    assert "tiny, float32, on a CPU and another." in text
    assert "Accuracies are over 3 to 4 rows of each task, all that its file has; HS is `hellaswag_spread`." in text


def test_folders_of_one_protocol_are_read_as_one(tmp_path):
    results = Results(MAIN, request(choice=CHOICE, policies=(ALL,)), tmp_path / "a", tmp_path / "b")
    dense, searched, relu = results.lines
    note(results.request.cell(searched, ALL, None).path(tmp_path / "a"), "a cell", "it failed here")
    note(results.request.cell(relu, ALL, None).path(tmp_path / "b"), "a cell", "it failed there")
    write_tasks(tmp_path / "a", results.request, dense, ALL, piqa="1111")
    write_tasks(tmp_path / "b", results.request, dense, ALL, piqa="0000")
    write_tasks(tmp_path / "b", results.request, searched, ALL, piqa="1110")
    assert [results.scores(line, ALL)["PIQA"].mean("acc") for line in (dense, searched)] == [1.0, 0.75]
    assert (results.failure(searched, ALL, None), results.failure(relu, ALL, None)) == (None, "it failed there")


def test_refused_cells_say_so(tmp_path):
    results = filled(tmp_path)
    relu = results.lines[-1]
    for policy in (LAST, ALL):
        reason = "sparsity 0.5 is below its floor" if policy == ALL else "it has none"
        refuse(results.request.cell(relu, policy, None), ValueError(reason), tmp_path, {})
    fresh = results_of(tmp_path)
    found = rows(markdown(fresh), "Mean over the tasks, %")["relufication"]
    assert (found[1], found[7]) == ("not possible", "below its floor")
    assert "- No figure for relufication at 50%: it has none." in markdown(fresh)
    row = metrics(fresh)["rows"][-1]
    assert (row["policies"]["all"]["refused"], "mean" in row["policies"]["all"]) == (["sparsity 0.5 is below its floor"], False)


def test_metrics(tmp_path):
    found = metrics(filled(tmp_path))
    mine = found["rows"][1]
    assert (mine["preset"], mine["sparsity"], list(mine["policies"])) == ("searched", 0.5, ["last_fraction:0.1", "all"])
    assert mine["policies"]["all"] == {
        "mean": 50.0, "tasks": dict.fromkeys(TASKS, 50.0), "perplexity": {"one": 9.0}, "achieved_sparsity": 0.5,
    }  # fmt: skip
    assert [each["mean"] for each in mine["policies"]["last_fraction:0.1"]["published"]] == [64.06, 63.31, 66.20, 68.39]
    few = metrics(filled(tmp_path / "few", piqa="1100", sciq="1110"))["rows"][1]["policies"]["last_fraction:0.1"]["published"]
    assert [each["mean"] for each in few] == [85.605, 82.975]  # as in the table, over the tasks that ran
    assert found["lines"][0].startswith("Paper's ordering")
    assert found["ordering"] == {"last_fraction:0.1": [], "all": []}


def test_a_cell_that_failed_says_so_and_why(tmp_path):
    results = results_of(tmp_path)
    searched = results.lines[1]
    reason = "OutOfMemoryError: a | b, and of the many things that could be told of it these are the last"
    for text, policy in (("one.txt", ALL), (None, LAST)):
        note(results.request.cell(searched, policy, text).path(tmp_path), "a cell", reason)
    text = markdown(results)
    assert rows(text, "Mean over the tasks, %")["R-Sparse (searched)"][1] == (
        "failed: OutOfMemoryError: a \\"
    )  # the rows' reader splits at the bar that Markdown does not
    assert "| failed: OutOfMemoryError: a \\| b, and of the many things that could…" in text
    assert rows(text, "Perplexity")["R-Sparse (searched)"][1] == "not run"
    assert f"- Failed, to be tried again by the next run: R-Sparse (searched) at 50%: {reason}." in text.splitlines()
    found = next(row for row in metrics(results)["rows"] if row["preset"] == "searched")
    assert found["policies"]["all"]["failed"] == [reason]
    assert "failed" not in metrics(results)["rows"][0]["policies"]["all"]
    write_text(tmp_path, results.request, searched, ALL, "one.txt", [1.0, 2.0], 0.5)  # by now it has run
    write_tasks(tmp_path, results.request, searched, LAST, 0.5, **EIGHT)
    assert "failed" not in markdown(results_of(tmp_path)).lower()


def test_a_dense_model_of_other_weights_is_no_reference(tmp_path):
    mine = table(Row("teal", (0.5,), (BASE, Variant("int4", "4 bits", weight_bits=4))), tasks=True)
    results = results_of(tmp_path, mine)
    lines = {line.label: line for line in results.lines}
    assert list(lines) == ["dense", "teal", "dense, 4 bits", "teal, 4 bits"]
    for label in ("teal", "dense, 4 bits", "teal, 4 bits"):  # no record of the model's own weights
        line = lines[label]
        write_tasks(tmp_path, results.request, line, ALL, 0.0 if line.dense else 0.5, **EIGHT)
    found = rows(markdown(results), "By task, %, token policy all")
    assert found["teal"][-1] == ""
    assert found["teal, 4 bits"][-1] == "+0.00 (+0.00 to +0.00)"
