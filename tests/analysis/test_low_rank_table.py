"""When low rank pays, as tables, from records written by hand."""

from __future__ import annotations

import json

import pytest

from rsparse.analysis.low_rank_table import chosen, gain_table, kind_table, load_ranks, markdown
from rsparse.errors import RSparseError
from tests.analysis.tables import cells

DROPPED = {
    "weighted90": {"o_proj": 0.5}, "output90": {"o_proj": 0.25}, "ratio": {"o_proj": 0.8}, "svd_ratio": {"o_proj": 1.25},
    "pays": {"o_proj": 0.75}, "ratio_rank_correlation": {"rank90": 0.5, "weighted90": None, "output90": -0.25},
}  # fmt: skip
RANK = {
    "config": {"model": "tiny", "rho": 0.95},
    "metrics": {"summary": {"rank90": {"o_proj": 0.6}, "dropped": DROPPED}},
}


def record(method, kl, *, preset=None, level=0.5, share=0.0, text="a.txt", rho=None, compensation="", ranked=0.5):
    config = {"model": "tiny.gguf", "preset": preset or method, "method": method, "sparsity": level, "data": text}
    config |= {"rank_share": share, "compensation": compensation}
    if rho is not None:
        config["kinds"] = {"o_proj": {"rho": rho, "ranked": ranked, "criterion": ["magnitude"]}}
    return {"config": config, "metrics": {"kl_to_dense": kl}}


def test_chosen_rho_stands_beside_the_spectra():
    records = [record("joint", 0.3, preset="balanced", rho=0.97), record("searched", 0.4, rho=0.9123)]
    head, _, row = kind_table(RANK, records, 0.5)
    assert cells(head)[7:] == ["rho, searched", "rho, balanced"]
    assert cells(row) == ["o_proj", "60%", "50%", "25%", "0.80", "1.25", "75%", "0.912 (50%)", "0.970 (50%)"]


def test_records_that_do_not_say_or_are_of_another_level_have_no_column():
    records = [record("joint", 0.3), record("searched", 0.3, rho=0.9, level=0.4), record("rsparse", 0.3, rho=0.95)]
    assert chosen(records, 0.5) == {}
    assert len(cells(kind_table(RANK, records, 0.5)[2])) == 7


def test_groups_of_linears_are_no_row_of_theirs():
    mine = record("searched", 0.4, rho=0.9)
    mine["config"]["kinds"] = {"qkv": {"rho": 0.9, "ranked": 1.0}}
    assert cells(kind_table(RANK, [mine], 0.5)[2])[-1] == ""


def test_what_is_gained_is_against_the_same_recipe_without_low_rank_on_the_same_texts():
    records = [
        record("sparse_only", 0.4), record("sparse_only", 0.2, text="b.txt"), record("teal", 0.3),
        record("searched", 0.36, share=0.02), record("joint", 0.24, preset="balanced", share=0.005),
        record("joint", 0.32, preset="joint-lowrank-false"), record("searched", 0.1, level=0.6, share=0.02),
        record("joint", 0.18, preset="joint-criterion-column_norm-compensate", share=0.005, compensation="c4"),
        record("joint", 0.2, preset="best", compensation="c4"), record("rsparse", 0.3, preset="rsparse-compensate", share=0.05),
    ]  # fmt: skip
    found = {row[2]: row[3:] for row in map(cells, gain_table(records)[2:])}
    assert found == {
        "searched": ["2.0%", "0.360", "sparse_only", "0.400", "0.90"],
        "balanced": ["0.5%", "0.240", "joint-lowrank-false", "0.320", "0.75"],
        "joint-criterion-column_norm-compensate": ["0.5%", "0.180", "best", "0.200", "0.90"],
    }
    assert gain_table(records[:3]) == []
    assert gain_table([*records[:3], record("searched", 0.4)]) == []  # it chose no rank: nothing to compare


def test_a_recipe_without_any_rank_and_an_ablation_have_no_column_of_rho():
    records = [record("searched", 0.4, rho=1.0, ranked=0.0), record("joint", 0.3, preset="joint-criterion-magnitude", rho=0.97)]
    assert chosen(records, 0.5) == {}


def test_models_without_records_of_quality_have_their_spectra(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "rank.json").write_text(json.dumps(RANK))
    ranks = load_ranks(tmp_path)
    text = markdown(ranks, [], 0.5)
    assert "**tiny**" in text
    assert "spectra: W +0.50, W diag(rms x_d) none, W x_d -0.25." in text
    assert "KL with and without it" not in text
    assert "| rho, searched |" in markdown(ranks, [record("searched", 0.4, rho=0.9)], 0.5)


def test_a_rank_record_without_a_calibration_is_named(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "rank.json").write_text(json.dumps({"config": {}, "metrics": {"summary": {}}}))
    with pytest.raises(RSparseError, match=r"rank\.json is no record of analyze rank with a calibration"):
        load_ranks(tmp_path)
    assert load_ranks(tmp_path / "none") == {}
