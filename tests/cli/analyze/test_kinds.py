"""rsparse analyze, as a shell sees it: each kind from the command line to its picture and record."""

from __future__ import annotations

import json

import pytest

from rsparse.cli._main import build_parser
from tests.cli.conftest import bad, good, run

WINDOWS = ["--data", "test.txt", "--seq-len", 24, "--max-tokens", 96]
SWEEP = [*WINDOWS, "--calibration", "calibration", "--settle-tokens", 240]


def record_of(folder, kind):
    """The record, after a look at what every kind writes."""
    assert (folder / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / f"{kind}.json").read_text())
    assert sorted(record) == ["config", "env", "metrics", "run", "schema"]
    config = record["config"]
    assert (config["suite"], config["kind"]) == ("analyze", kind)
    assert {"model", "weights_sha", "dtype"} <= set(config)
    return record


def test_sensitivity_resumes(here, monkeypatch):
    command = ["analyze", "sensitivity", "dense", *WINDOWS, "--levels", "0.5", "--grouping", "group", "-o", "out"]
    first = good(*command)
    assert first.out.count("\n") == 2
    assert first.err == "out/sensitivity.png, sensitivity.json\n"
    record = record_of(here / "out", "sensitivity")
    assert (record["metrics"]["tokens"], record["config"]["data"]) == (96, "test.txt")
    assert len(record["metrics"]["kl_to_dense_by_unit"]["0.5"]) == 8
    monkeypatch.setattr("rsparse.analysis.sensitivity.solve_threshold", lambda *given: pytest.fail("measured again"))
    assert good(*command).out == first.out


def test_sensitivity_is_in_fp32_where_nothing_else_is_asked():
    """On a GPU too, where `auto` is bfloat16, whose rounding is more than a cheap unit costs."""
    command = ["analyze", "sensitivity", "dense", "-o", "out"]
    assert build_parser().parse_args(command).dtype == "float32"
    assert build_parser().parse_args([*command, "--dtype", "bfloat16"]).dtype == "bfloat16"
    assert build_parser().parse_args(["analyze", "rank", "dense", "-o", "out"]).dtype == "auto"


def test_rank_beside_a_recipe(here):
    good("show", "sparse", "--save", "recipe.json")
    lines = good("analyze", "rank", "dense", "--recipe", "recipe.json", "-o", "out").out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["claim", "rank correlation of the recipe's rho with it"]
    record = record_of(here / "out", "rank")
    assert set(record["metrics"]["rho_by_weight"].values()) == {0.6}
    assert len(record["metrics"]["by_weight"]) == 14


def test_where_low_rank_pays(here):
    out = good("analyze", "rank", "dense", "--calibration", "calibration", "--rho", 0.6, "--by-kind", "-o", "out").out
    assert "at 50%, 40% of the kept bytes for factors fitted to what is dropped" in out
    record = record_of(here / "out", "rank")
    assert (record["config"]["calibration"], record["config"]["rho"]) == ("text.txt, 768 tokens", 0.6)
    assert list(record["metrics"]) == ["summary", "lines"]
    assert len(record["metrics"]["summary"]["dropped"]["ratio"]) == 7
    good("analyze", "rank", "dense", "--calibration", "calibration", "--sparsity", 0.4, "-o", "out")
    assert {"rank90", "ratio"} <= set(next(iter(record_of(here / "out", "rank")["metrics"]["by_weight"].values())))


def test_activations(here):
    assert (
        "claim: few entries matter" in good("analyze", "activations", "dense", "--calibration", "calibration", "-o", "out").out
    )
    record = record_of(here / "out", "activations")
    assert record["config"]["data"] == "text.txt, 768 tokens"
    assert len(record["metrics"]["by_input"]) == 8


def test_importance_of_one_text_and_of_two_and_rank_beside_it(here):
    base = ["analyze", "importance", "dense", "--seq-len", 24, "-o", "out"]
    assert good(*base, "--data", "test.txt", "--samples", 2).out.count("claim") == 1
    out = good(*base, "--data", "test.txt", "--data", "text.txt", "--samples", "1,4", "--block", 0).out
    assert out.count("claim") == 3
    record = record_of(here / "out", "importance")
    assert record["config"]["data"] == ["test.txt", "text.txt"]
    assert record["metrics"]["tokens"] == 2 * 4 * 24
    assert [entry["pair"] for entry in record["metrics"]["summary"]["overlap_samples"]] == [[1, 0], [3, 2]]
    out = good("analyze", "rank", "dense", "--importance", "out/importance.json", "-o", "out").out
    assert out.splitlines()[-1].startswith("claim: importance is concentrated where the rank is low: ")
    corners = {name: each["corners"][0]["0.25"] for name, each in record["metrics"]["by_weight"].items()}
    rank = record_of(here / "out", "rank")
    assert (rank["metrics"]["corner_by_weight"], rank["config"]["importance"]) == (corners, "test.txt, 4 × 24 tokens")
    text = (here / "out" / "importance.json").read_text()
    (here / "out" / "importance.json").write_text(text.replace('"weights_sha": "', '"weights_sha": "f'))
    bad("importance.json is of weights f", "analyze", "rank", "dense", "--importance", "out/importance.json", "-o", "out")


def test_multi_phase_resumes(here, monkeypatch):
    command = ["analyze", "multi-phase", "dense", *WINDOWS, "--levels", "0.5,0.8", "--phases", "2,16", "-o", "out"]
    first = good(*command)
    assert first.out.count("claim") == 2
    record = record_of(here / "out", "multi-phase")
    assert list(record["metrics"]["points"]["0.8"]) == ["2", "16"]
    assert list(record["metrics"]["by_block"][0]["rank90"]) == ["dropped", "2"]  # the rank is told up to 8 phases
    monkeypatch.setattr("rsparse.analysis.multi_phase.evaluate", lambda *given, **options: pytest.fail("measured again"))
    assert good(*command).out == first.out
    assert sorted(path.stem for path in (here / "out" / "multi-phase").iterdir()) == [
        "dense", "s0.5-p16", "s0.5-p2", "s0.8-p16", "s0.8-p2", "settings",
    ]  # fmt: skip


def test_rho_grows_by_points(here):
    command = ["analyze", "rho", "dense", *SWEEP, "-o", "out", "--rhos"]
    good(*command, "0,1")
    assert good(*command, "0,0.5,1").out.count("claim") == 1
    record = record_of(here / "out", "rho")
    assert list(record["metrics"]["points"]) == ["0", "0.5", "1"]
    assert record["config"]["sparsity"] == 0.5
    assert len(list((here / "out" / "rho").iterdir())) == 5


def test_sparsity(here):
    out = good(
        "analyze",
        "sparsity",
        "dense",
        *SWEEP,
        "--method",
        "sparse_only",
        "--levels",
        "0.3,0.5",
        "--token-policy",
        "decode",
        "-o",
        "out",
    ).out
    assert out.startswith("sparse_only: 30% ")
    record = record_of(here / "out", "sparsity")
    assert (record["config"]["token_policy"], record["metrics"]["tokens"]) == ("decode", 4 * 12)
    points = record["metrics"]["points"]["sparse_only"]
    assert points["0.3"]["tokens"] == 4 * 12
    assert points["0.3"]["achieved_sparsity"] == pytest.approx(0.3, abs=0.06)


def test_token_policies_of_a_checkpoint_and_of_a_recipe(here):
    command = ["analyze", "token-policy", *WINDOWS, "--policies", "all,last_fraction:0.25"]
    assert "claim" in good(*command, "sparse", "-o", "out").out
    mine = record_of(here / "out", "token-policy")
    assert mine["config"]["method"] == "rsparse"
    assert mine["config"]["token_policy"] == ["all", "last_fraction:0.25"]
    good("show", "sparse", "--save", "recipe.json")
    good(*command, "dense", "--recipe", "recipe.json", "--calibration", "calibration", "-o", "other")
    theirs = record_of(here / "other", "token-policy")
    for policy, point in mine["metrics"]["points"].items():
        assert theirs["metrics"]["points"][policy]["perplexity"] == pytest.approx(point["perplexity"], rel=1e-4)


def test_kinds_share_a_folder_and_without_one_they_are_named():
    outcome = run("analyze")
    assert outcome.code == 2
    assert "KIND" in outcome.err
    text = good("analyze", "--help").out
    for kind in ("multi-phase", "importance", "rank", "activations", "rho", "sparsity", "token-policy", "sensitivity"):
        assert kind in text
