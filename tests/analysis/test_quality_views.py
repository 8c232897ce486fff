"""Tables and the plot of a bench, from records written by hand."""

from __future__ import annotations

import json

import pytest

from rsparse.analysis.pareto import plot
from rsparse.analysis.quality_table import load_records, markdown, perplexity_table, task_table
from rsparse.errors import RSparseError
from tests.analysis.tables import cells

DENSE_BYTES = 200_000_000


def record(preset, sparsity, *, text=None, policy="all", perplexity=None, kl=None, rows=None, model="tiny", size=None):
    config = {"suite": "quality", "model": model, "preset": preset, "sparsity": sparsity, "token_policy": policy}
    config |= {"weights_sha": "abc", "dtype": "float32", "calibration": "c4, 100 tokens" if sparsity else ""}
    metrics = {"achieved_sparsity": sparsity, "dense_bytes_per_token": DENSE_BYTES}
    metrics["bytes_per_token"] = size or round(DENSE_BYTES * (1 - 0.8 * sparsity))
    if text:
        config |= {"data": text, "seq_len": 512}
        metrics |= {"perplexity": perplexity} | ({"kl_to_dense": kl} if kl is not None else {})
    else:
        acc = [float(row) for row in rows]
        entry = {"acc": sum(acc) / len(acc), "stderr": 0.1, "n": len(acc), "chance": 0.5, "rows": {"acc": rows}}
        metrics["tasks"] = {"words": entry}
    return {"schema": 1, "config": config, "metrics": metrics}


RECORDS = [
    record("teal", 0.5, text="a.txt", perplexity=12.345, kl=0.25),
    record("teal", 0.5, text="b.jsonl", perplexity=20.0, kl=0.35),
    record("teal", 0.4, text="a.txt", perplexity=11.0, kl=0.1),
    record("sparse_only", 0.5, text="a.txt", perplexity=14.0, kl=0.5),
    record("dense", 0.0, text="a.txt", perplexity=10.0),
    record("dense", 0.0, text="b.jsonl", perplexity=18.0),
    record("dense", 0.0, policy="dense", rows="1111111110"),  # 0.9
    record("teal", 0.5, rows="1111111000"),  # 0.7: half of what dense has above 0.5
    record("teal", 0.5, policy="decode", rows="1111111110"),
]


def test_the_perplexity_table_by_hand():
    head, rule, *rows = map(cells, perplexity_table(RECORDS))
    assert head == ["method", "asked", "a", "b", "mean KL", "achieved", "MB a token"]
    assert len(rule) == len(head)
    assert rows == [
        ["dense", "", "10.00", "18.00", "", "0.000", "200"],
        ["teal", "40%", "11.00", "", "0.100", "0.400", "136"],
        ["sparse_only", "50%", "14.00", "", "0.500", "0.500", "120"],
        ["teal", "50%", "12.35", "20.00", "0.300", "0.500", "120"],
    ]


def test_the_task_table_by_hand():
    head, _, dense, teal, decode = map(cells, task_table(RECORDS))
    assert head[:5] == ["method", "asked", "policy", "words", "mean"]
    assert dense == ["dense", "", "", "0.900", "0.9000", "", ""]
    assert teal[:5] == ["teal", "50%", "all", "0.700", "0.7000"]
    # rows differ in two of ten: mean −0.2, standard deviation sqrt(1.6 / 9), so ± 1.96 · 0.1333
    assert teal[5] == "-0.2000 (-0.4613 to +0.0613)"
    assert teal[6].startswith("50.0% (")
    assert decode[2:] == ["decode", "0.900", "0.9000", "+0.0000 (+0.0000 to +0.0000)", "100.0% (100.0% to 100.0%)"]


def test_a_dense_model_at_chance_leaves_the_share_empty():
    rows = [record("dense", 0.0, policy="dense", rows="10"), record("teal", 0.5, rows="11")]
    assert cells(task_table(rows)[-1])[-1] == ""


def test_a_policy_that_is_not_all_is_named():
    head = cells(perplexity_table([record("dense", 0.0, text="a.txt", policy="decode", perplexity=3.0)])[0])
    assert head[2] == "a (decode)"


def test_markdown_names_weights_protocol_and_each_model():
    text = markdown([*RECORDS, record("dense", 0.0, text="a.txt", perplexity=5.0, model="other")])
    assert text.index("## other") < text.index("## tiny")
    assert "Weights abc, float32. Perplexity over windows of 512 tokens, policy all. Calibrated on c4, 100 tokens." in text


def test_records_are_read_from_model_folders_and_others_left_out(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "settings.json").write_text("{}")
    for number, each in enumerate(RECORDS):
        (tmp_path / "tiny" / f"{number}.json").write_text(json.dumps(each))
    (tmp_path / "tiny" / "speed.json").write_text(json.dumps({"config": {"suite": "decode"}, "metrics": {}}))
    assert load_records(tmp_path) == RECORDS
    (tmp_path / "tiny" / "broken.json").write_text("{")
    with pytest.raises(RSparseError, match=r"broken\.json is not a result record"):
        load_records(tmp_path)


def test_the_plot_shows_each_method_at_its_share_of_bytes(tmp_path, monkeypatch):
    import matplotlib.figure

    seen = {}
    real = matplotlib.figure.Figure.savefig

    def savefig(figure, path, **options):
        for axis in figure.axes:
            for line in axis.lines:
                if len(line.get_xdata()) != 2 or line.get_label() != "dense":
                    seen[axis.get_title(), line.get_label()] = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        real(figure, path, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    plot(RECORDS, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
    assert seen["tiny, a", "teal"] == [(pytest.approx(0.68), 11.0), (pytest.approx(0.6), 12.345)]
    assert seen["tiny, a", "sparse_only"] == [(pytest.approx(0.6), 14.0)]
    assert seen["tiny, b", "teal"] == [(pytest.approx(0.6), 20.0)]


def test_what_is_cut_off_everywhere_has_no_line_and_what_is_fitted_a_dashed_one(tmp_path, monkeypatch):
    import matplotlib.figure

    seen = {}

    def savefig(figure, path, **options):
        seen.update((line.get_label(), line.get_linestyle()) for axis in figure.axes for line in axis.lines)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    fitted = record("best", 0.5, text="a.txt", perplexity=11.0)
    fitted["config"]["compensation"] = "c4"
    hopeless = [record("low_rank_only", 0.5, text=text, perplexity=1000.0) for text in ("a.txt", "b.jsonl")]
    half = [record("nncf", 0.5, text="a.txt", perplexity=1000.0), record("nncf", 0.4, text="b.jsonl", perplexity=54.0)]
    plot([*RECORDS, fitted, *hopeless, *half], tmp_path / "p.png")
    assert seen == {"dense": ":", "teal": "-", "sparse_only": "-", "best": "--", "nncf": "-"}


def test_a_folder_of_folders_settings_are_no_record(tmp_path):
    (tmp_path / "int4").mkdir()
    (tmp_path / "int4" / "settings.json").write_text("{}")
    assert load_records(tmp_path) == []


def test_no_perplexity_no_plot(tmp_path):
    plot([record("teal", 0.5, rows="10")], tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


def test_a_panel_that_nobody_ran_is_left_empty(tmp_path):
    records = [
        record("dense", 0.0, text="a.txt", perplexity=10.0),
        record("teal", 0.5, text="b.txt", perplexity=12.0, model="other"),
    ]
    plot(records, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
