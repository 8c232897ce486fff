"""`rsparse compensate`: its checkpoint and record, going on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import os

import pytest

import rsparse
from rsparse.compensation import fit
from rsparse.compensation.resume import FitFile
from rsparse.sparse_model import state
from tests.cli.conftest import bad, good, run
from tests.support.folders import snapshot

SMALL = ["--steps", "4", "--check-every", "2", "--batch-tokens", "96", "--learning-rate", "0.1", "--tokens", "768"]
COMPENSATE = ["compensate", "sparse", "--data", "text.txt", "--seq-len", "24", *SMALL]


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    """(folder with new/ and record.json, what was said): leave it as it is."""
    folder = tmp_path_factory.mktemp("compensated")
    outcome = good(
        "compensate", made / "sparse", "--data", made / "text.txt", "--seq-len", "24", *SMALL,
        "-o", folder / "new", "--json", folder / "record.json",
    )  # fmt: skip
    return folder, outcome


def recipe_of(folder):
    return state(rsparse.from_pretrained(folder, device="cpu")[0]).recipe


def test_it_writes_a_checkpoint_and_a_record_and_nothing_else(done, made):
    folder, _ = done
    assert sorted(path.name for path in folder.iterdir()) == ["new", "record.json"]
    before, after = recipe_of(made / "sparse"), recipe_of(folder / "new")
    assert all(unit.compensated for unit in after.units.values())
    assert after.compensation == "text.txt, 720 tokens: vectors, levels, factors; 4 steps of 96 tokens, seed 0"
    assert after.sparsity == pytest.approx(before.sparsity, abs=1e-4)
    assert list(after.units) == list(before.units)
    record = json.loads((folder / "record.json").read_text())
    config, metrics = record["config"], record["metrics"]
    expected = {"model": "sparse", "method": "rsparse", "token_policy": "all", "sink_tokens": 1, "seq_len": 24}
    expected |= {"compensation": after.compensation, "recipe_sha": after.sha(), "sparsity": round(after.sparsity, 6)}
    assert {name: config[name] for name in expected} == expected
    assert config["weights_sha"]
    assert config["fit_settings"] == {
        "steps": 4, "batch_tokens": 96, "learning_rate": 0.1, "factor_rate": 1.0, "levels": True, "factors": True,
        "check_every": 2, "patience": 5, "seed": 0,
    }  # fmt: skip
    assert [step for step, _ in metrics["history"]] == [0, 2, 4]
    best = min(metrics["history"], key=lambda each: each[1])
    assert [metrics["kept_step"], metrics["heldout_kl"]] == best
    assert metrics["heldout_kl_before"] == metrics["history"][0][1] > metrics["heldout_kl"]
    assert metrics["fit_seconds"] > 0


def test_the_memory_in_the_record_is_the_fits(here, monkeypatch):
    """Counted from just before it, and read behind it."""
    seen, fit = [], rsparse.compensation.compensate
    monkeypatch.setattr("rsparse.memory.reset_peak", lambda device: seen.append("reset"))
    monkeypatch.setattr("rsparse.memory.peak_bytes", lambda device: seen.append("read") or 1234)
    monkeypatch.setattr("rsparse.compensation.compensate", lambda *a, **o: (seen.append("fit"), fit(*a, **o))[1])
    good(*COMPENSATE, "-o", "new", "--json", "record.json")
    assert seen == ["reset", "fit", "read"]
    assert json.loads((here / "record.json").read_text())["metrics"]["fit_peak_bytes"] == 1234


def test_what_it_says(done):
    folder, outcome = done
    assert outcome.out == ""
    first, second, last = [line for line in outcome.err.splitlines() if "KL" in line or "eval" in line]
    assert first.startswith("[2/4] KL ")
    assert second.startswith("[4/4] KL ")
    assert second.endswith(" held out, about 0 min left")
    assert "goes on" not in outcome.err
    assert last == f"{folder / 'new'}: rsparse, compensated; `rsparse eval {folder / 'new'}` compares it with dense"


def test_the_checkpoint_evaluates_and_generates(done, here):
    good("eval", done[0] / "new", "--perplexity", "test.txt", "--seq-len", "24", "--json", "eval.json")
    good("eval", "sparse", "--perplexity", "test.txt", "--seq-len", "24", "--json", "plain.json")
    after, before = (json.loads((here / name).read_text()) for name in ("eval.json", "plain.json"))
    assert after["config"]["compensation"].startswith("text.txt")
    assert after["config"]["recipe_sha"] != before["config"]["recipe_sha"]
    assert before["config"]["compensation"] == ""
    assert after["metrics"] != before["metrics"]
    assert good("generate", done[0] / "new", "--prompt", "the river", "--max-new-tokens", "3").out


def test_show_says_so(done, here):
    line = "compensated in 14 of them, fitted on text.txt, 720 tokens: vectors, levels, factors; 4 steps of 96 tokens, seed 0"
    assert good("show", done[0] / "new").out.splitlines().count(line) == 1
    assert "compensated" not in good("show", "sparse").out


def test_a_compensated_checkpoint_densifies_and_compensates_again(done, here):
    good("densify", done[0] / "new", "-o", "dense-again")
    assert snapshot(here / "dense-again")["model.safetensors"] == (here / "dense" / "model.safetensors").read_bytes()
    again = [*COMPENSATE[:1], done[0] / "new", *COMPENSATE[2:]]
    good(*again, "-o", "new", "--json", "record.json", "--no-levels", "--no-factors", "--seed", "3")
    record = json.loads((here / "record.json").read_text())
    first = json.loads((done[0] / "record.json").read_text())
    assert record["metrics"]["heldout_kl_before"] == pytest.approx(first["metrics"]["heldout_kl"], rel=0.1)
    assert {name: record["config"]["fit_settings"][name] for name in ("levels", "factors", "seed")} == {
        "levels": False, "factors": False, "seed": 3,
    }  # fmt: skip
    assert recipe_of("new").compensation.endswith("tokens: vectors; 4 steps of 96 tokens, seed 3")


@pytest.fixture
def interrupted(here, monkeypatch):
    """new.fit of a fit that was stopped after its first check."""
    real = FitFile.save

    def stop(self, saved):
        real(self, saved)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FitFile, "save", stop)
        before = {path.name for path in here.iterdir()}
        outcome = run(*COMPENSATE, "-o", "new")
    assert outcome.code == 130
    assert {path.name for path in here.iterdir()} - before == {"new.fit"}
    return here


def test_it_goes_on_where_it_stopped(interrupted, done):
    outcome = good(*COMPENSATE, "-o", "new", "--json", "record.json")
    assert "goes on with new.fit\n" in outcome.err
    assert "[2/4]" not in outcome.err
    assert "[4/4]" in outcome.err
    assert not (interrupted / "new.fit").exists()
    assert snapshot(interrupted / "new") == snapshot(done[0] / "new")
    found, expected = (json.loads(path.read_text()) for path in (interrupted / "record.json", done[0] / "record.json"))
    for name in ("fit_seconds", "fit_peak_bytes"):
        del found["metrics"][name], expected["metrics"][name]
    assert found["metrics"] == expected["metrics"]


def test_another_fits_state_is_refused_and_kept(interrupted):
    before = (interrupted / "new.fit").read_bytes()
    outcome = run(*COMPENSATE, "--steps", "5", "-o", "new")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith("rsparse: error: new.fit is the state of another fit")
    assert (interrupted / "new.fit").read_bytes() == before
    assert not (interrupted / "new").exists()


def test_a_disk_that_is_full_at_the_end_costs_no_fit(here, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rsparse.checkpoint.save.save_file", full)
        outcome = run(*COMPENSATE, "-o", "new")
    assert outcome.code == 2
    assert "the disk is full" in outcome.err
    assert not (here / "new").exists()
    monkeypatch.setattr(fit._Fit, "_step", lambda self, step: pytest.fail("fitted again"))
    good(*COMPENSATE, "-o", "new")
    assert sorted(path.name for path in here.iterdir() if path.name.startswith(("new", "."))) == ["new"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--batch-tokens", "23"], "batch_tokens 23 is less than one window of 24 tokens"),
        (["--learning-rate", "2"], "learning_rate must be in (0, 1]"),
        (["--learning-rate", "nan"], "learning_rate must be in (0, 1]"),
        (["--factor-rate", "0"], "factor_rate must be in (0, 100]"),
        (["--check-every", "0"], "check_every must be at least 1"),
        (["--patience", "0"], "patience must be at least 1"),
        (["--seed=-1"], "seed must be 0 or more"),
        (["--steps", "many"], "many"),
        (["--data", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--data", "empty.txt"], "there is no text in it"),
        (["--tokens", "47"], "--tokens must be 48 or more"),
        (["--tokens=-1"], "--tokens must be 48 or more"),
        (["--device", "moon"], "'moon'"),
        (["--json", "dense"], "--json dense is a folder"),
        (["-o", "sparse"], "sparse already exists; name another folder or pass --overwrite"),
        (["-o", "text.txt"], "text.txt is a file"),
        (["-o", "mine", "--overwrite"], "neither a model nor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_before_the_model_loads(here, monkeypatch, words, says):
    monkeypatch.setattr("rsparse.checkpoint.from_pretrained", lambda *a, **o: pytest.fail("loaded before it checked"))
    (here / "empty.txt").write_text("\n")
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("all of it")
    before = sorted(os.listdir())
    bad(says, *COMPENSATE, "-o", "deep/new", *words)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["dense"], "dense is dense; `rsparse sparsify` it first"),
        (["./nowhere"], "./nowhere"),
        (["sparse", "--seq-len", "300", "--batch-tokens", "300"], "256"),
        (["sparse", "--seq-len", "1"], "seq_len must be at least 2"),
        (["sparse", "--seq-len", "0"], "seq_len must be at least 2"),
        (["sparse", "--sink-tokens", "24"], "sink_tokens must be from 0 to below the window's 24 tokens"),
        (["sparse", "--sink-tokens=-1"], "sink_tokens must be from 0"),
        (["sparse", "--data", "short.txt"], "fills one window of 24 tokens; a fit needs two"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_by_model_or_text(here, words, says):
    (here / "short.txt").write_text("the river " * 4)
    before = sorted(os.listdir())
    model, *options = words
    bad(says, "compensate", model, *COMPENSATE[2:], "--tokens", "2400", "-o", "deep/new", *options)
    assert sorted(os.listdir()) == before


def test_a_compensated_recipe_alone_makes_no_model(done, here):
    good("show", done[0] / "new", "--save", "r.json")
    bad(
        "its vectors are in that checkpoint",
        "sparsify",
        "dense",
        "--recipe",
        "r.json",
        "--calibration",
        "calibration",
        "-o",
        "new",
    )
    assert not (here / "new").exists()
