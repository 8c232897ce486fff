"""Presets beside each other, by hand."""

from __future__ import annotations

from rsparse.analysis.preset_table import preset_table
from tests.analysis.gaps import BASE, TEXTS, record, texts
from tests.analysis.tables import cells


def tasks(preset, level, right, policy):
    """10 rows of two choices each: chance is 5 right."""
    marks = "1" * right + "0" * (10 - right)
    row = {"n": 10, "acc": right / 10, "chance": 0.5, "rows": {"acc": marks}}
    return record(preset, level, None, policy, tasks={"piqa": row})


def rows(records):
    return [cells(line) for line in preset_table(records, TEXTS)[2:]]


def test_memory_where_a_record_has_it():
    held = texts("best", 0.5, 11.0, 22.0, recipe=66.5, fit=126.73)
    for each in held:
        each["config"] |= {"recipe_peak_bytes": 3_210_000_000, "fit_peak_bytes": 13_660_000_000}
    lines = preset_table([*BASE, *texts("teal", 0.5, 13.0, 25.0, recipe=20.4), *held], TEXTS)
    assert cells(lines[0])[6:] == ["s, recipe", "s, fit", "GB, recipe", "GB, fit", "on"]
    assert [cells(line)[6:] for line in lines[2:]] == [["20", "", "", "", "H100"], ["66", "127", "3.2", "13.7", "H100"]]
    assert "GB" not in preset_table([*BASE, *texts("best", 0.5, 11.0, 22.0)], TEXTS)[0]


def test_gain_and_cost():
    best = texts("best", 0.5, 11.0, 22.0, recipe=66.5, fit=126.73)
    fast = texts("teal", 0.5, 13.0, 25.0, recipe=20.4, gpu=None)
    assert rows([*BASE, *best, *fast]) == [
        ["tiny", "50%", "`fast`", "38%", "", "", "20", "", "a CPU"],
        ["tiny", "50%", "`best`", "78%", "", "", "66", "127", "H100"],
    ]


def test_accuracy_above_chance_is_of_its_own_policy():
    """Dense has 10 of 10, so 9 right keep (0.9 − 0.5) / (1 − 0.5), and 7 right 40 %."""
    measured = [tasks("dense", 0.0, 10, "all"), tasks("best", 0.5, 9, "all"), tasks("best", 0.5, 7, "decode")]
    ((*_, every, decoded, _, _, _),) = rows([*BASE, *texts("best", 0.5, 11.0, 22.0), *measured])
    assert every.startswith("80% (")
    assert decoded.startswith("40% (")


def test_other_methods_and_policies_are_no_presets():
    wina = texts("wina", 0.5, 11.0, 22.0)
    decoded = [record("best", 0.5, text, "decode", perplexity=10.0) for text in TEXTS]
    assert rows([*BASE, *wina, *decoded]) == []


def test_a_row_needs_every_text():
    assert rows([*BASE, *texts("best", 0.5, 11.0, 22.0)[:1]]) == []
    assert rows([*BASE[:3], *texts("best", 0.5, 11.0, 22.0)]) == []
