"""--quality and +compensate: what they make, what the record says, and what is refused before the work."""

from __future__ import annotations

import json

import pytest
import torch

import rsparse
from rsparse.cli import _options
from rsparse.compensation import FitSettings
from rsparse.sparse_model import state
from tests.cli.conftest import SIZE, bad, good, run
from tests.support.models import token_ids, words

IDS = token_ids(1, 12)
SPARSIFY = ["sparsify", "dense", "--sparsity", "0.5", "-o", "new"]
CALIBRATED = [*SPARSIFY, "--calibration", "calibration"]
QUICK_TEAL = "teal:step=0.5,tokens=48"
QUICK_FIT = f"{QUICK_TEAL}+compensate:steps=4,batch_tokens=96,check_every=2"
QUICK_JOINT = "joint:rounds=0,tokens=48+compensate"


@pytest.fixture(autouse=True)
def short_fits(monkeypatch):
    """What --quality best fits on a CPU, shorter."""
    monkeypatch.setattr(FitSettings, "for_device", lambda device: FitSettings(steps=4, batch_tokens=96, check_every=2))


@torch.no_grad()
def logits(folder):
    return rsparse.from_pretrained(folder, device="cpu")[0](IDS).logits


def recipe_of(folder):
    return state(rsparse.from_pretrained(folder, device="cpu")[0]).recipe


@pytest.mark.parametrize(
    ("quality", "method", "compensated"), [("fast", "teal", False), ("balanced", "joint", False), ("best", "joint", True)]
)
def test_quality(here, quality, method, compensated):
    good(*CALIBRATED, "--quality", quality, "--seed", 3, "--json", "record.json")
    recipe = recipe_of("new")
    assert recipe.method == method
    assert recipe.sparsity == pytest.approx(0.5, abs=1e-4)
    assert {unit.compensated for unit in recipe.units.values()} == {compensated}
    assert len({round(unit.sparsity, 4) for unit in recipe.units.values()}) > 3
    found = json.loads((here / "record.json").read_text())
    config, metrics = found["config"], found["metrics"]
    assert (config["method"], bool(config["compensation"])) == (method, compensated)
    assert metrics["achieved_sparsity"] == pytest.approx(0.5, abs=0.05)  # on the few tokens of the check
    fit = {"heldout_kl_before", "heldout_kl", "kept_step", "history", "fit_seconds", "fit_peak_bytes"}
    assert ("fit_settings" in config, fit & metrics.keys()) == (compensated, fit if compensated else set())
    if compensated:
        assert config["fit_settings"] == {
            "steps": 4, "batch_tokens": 96, "learning_rate": 0.0025, "factor_rate": 4.0, "levels": True, "factors": True,
            "check_every": 2, "patience": 5, "seed": 3,
        }  # fmt: skip
        assert [step for step, _ in metrics["history"]] == [0, 2, 4]
        assert metrics["history"][0][1] == metrics["heldout_kl_before"] >= metrics["heldout_kl"] > 0
        assert config["compensation"].startswith("text.txt, ")
    assert not (here / "new.fit").exists()
    good("generate", "new", "--prompt", "the river", "--max-new-tokens", 2)


def test_a_methods_own_compensation_on_another_text(here):
    (here / "other.txt").write_text(words(600, seed=8))
    one = [*CALIBRATED, "--method", QUICK_FIT, "--json", "record.json"]
    outcome = good(*one, "--fit-data", "other.txt", "--fit-tokens", 960)
    assert "[4/4] KL " in outcome.err
    config = json.loads((here / "record.json").read_text())["config"]
    assert config["compensation"].startswith("other.txt, 888 tokens: vectors, levels, factors; 4 steps of 96 tokens, seed 0")
    assert config["method"] == "teal"
    other = logits("new")
    good(*one, "--fit-tokens", 960, "--overwrite")
    assert not torch.equal(logits("new"), other)
    good(*CALIBRATED, "--method", QUICK_TEAL, "--overwrite")
    assert not any(unit.compensated for unit in recipe_of("new").units.values())


def test_a_calibration_made_now_gives_text_and_windows_to_the_fit(here):
    good(*CALIBRATED, "--method", QUICK_FIT, "--fit-tokens", 480)
    before = logits("new")
    good(*SPARSIFY, "--data", "text.txt", *SIZE, "--method", QUICK_FIT, "--fit-tokens", 480, "--overwrite")
    assert torch.equal(logits("new"), before)


def test_the_seed_reaches_method_and_fit_but_for_their_own(here, monkeypatch):
    made, fitted = [], []
    real = rsparse.methods.make_recipe

    def make_recipe(model, method, sparsity, calibration=None, state_file=None, **options):
        made.append((method, options))
        return real(model, "sparse_only", sparsity)

    monkeypatch.setattr("rsparse.methods.make_recipe", make_recipe)

    def stop(model, windows, heldout, settings, **options):
        fitted.append(settings.seed)
        raise rsparse.RSparseError("enough")

    monkeypatch.setattr("rsparse.compensation.compensate", stop)
    for method in ("joint+compensate", "joint:seed=5+compensate:seed=7", "teal+compensate"):
        bad("enough", *CALIBRATED, "--method", method, "--seed", 3)
    assert made == [("joint", {"seed": 3}), ("joint", {"seed": "5"}), ("teal", {})]
    assert fitted == [3, 7, 3]


def test_an_interrupted_fit_goes_on_and_another_folders_state_is_left_alone(here, monkeypatch):
    command = [*CALIBRATED, "--method", QUICK_FIT, "--fit-tokens", 960]
    good(*command)
    whole = logits("new")
    with monkeypatch.context() as patch:

        def stop(progress):
            raise KeyboardInterrupt

        patch.setattr("rsparse.cli._fit._report", stop)
        assert run(*command, "--overwrite").code != 0
    assert (here / "new.fit").is_file()
    state_of_it = (here / "new.fit").read_bytes()
    good(*CALIBRATED, "--method", "sparse_only", "--overwrite")  # no compensation: the state is not its own
    assert (here / "new.fit").read_bytes() == state_of_it
    outcome = good(*command, "--overwrite")
    assert "goes on with new.fit" in outcome.err
    assert "[2/4]" not in outcome.err
    assert torch.equal(logits("new"), whole)
    assert not (here / "new.fit").exists()


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_allocated_before_a_kill_is_there_after_it(here, monkeypatch):
    command = [*CALIBRATED, "--method", QUICK_JOINT, "--fit-tokens", 960]
    good(*command)
    whole = files_of(here / "new")
    assert not (here / "new.allocation").exists()

    def stop(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rsparse.compensation.compensate", stop)
        assert run(*command, "--overwrite").code != 0
    kept = (here / "new.allocation").read_bytes()
    good(*CALIBRATED, "--method", "sparse_only", "--overwrite")  # of a method that keeps nothing
    bad("new.allocation is the state of another allocation: its sparsity is 0.5, here it is 0.4; remove it",
        *command, "--sparsity", "0.4", "--overwrite")  # fmt: skip
    assert (here / "new.allocation").read_bytes() == kept
    with monkeypatch.context() as patch:
        patch.setattr("rsparse.methods._greedy._allocate", stop)
        patch.setattr("rsparse.search.candidate.CandidateModel.evaluate", stop)
        outcome = good(*command, "--overwrite")
    assert "went on with new.allocation" in outcome.err
    assert files_of(here / "new") == whole
    assert not (here / "new.allocation").exists()
    assert not (here / "new.fit").exists()


@pytest.fixture
def idle(monkeypatch):
    """No calibration, no recipe: they take hours."""

    def work(*args, **options):
        pytest.fail("worked before it checked")

    monkeypatch.setattr("rsparse.methods.make_recipe", work)
    monkeypatch.setattr(_options, "calibrate", work)


@pytest.mark.usefixtures("idle")
def test_a_text_that_fills_no_two_windows_is_found_before_the_work(here):
    (here / "short.txt").write_text(words(12))
    for source in (["--calibration", "calibration"], ["--data", "text.txt", *SIZE]):
        bad(
            "short.txt fills one window of 24 tokens; a fit needs two",
            *SPARSIFY,
            *source,
            "--quality",
            "best",
            "--fit-data",
            "short.txt",
        )
    assert not (here / "new").exists()


@pytest.mark.usefixtures("idle")
def test_a_hub_out_of_reach_is_found_before_the_work(here, monkeypatch):
    def gone(name):
        raise rsparse.RSparseError(f"cannot read data set {name} from the Hub")
        yield

    monkeypatch.setattr("rsparse.calibration.text._read_hub", gone)
    bad("cannot read data set some/set from the Hub", *CALIBRATED, "--quality", "best", "--fit-data", "some/set")
