"""Cells of compensated methods and of presets: what their records say, what they share, and a fit that fails."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from rsparse.benchmark import workbench
from rsparse.calibration import calibrate
from rsparse.compensation import FitSettings, compensate, fit_windows
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from rsparse.evaluation.measure import text_windows
from rsparse.evaluation.perplexity import evaluate
from rsparse.methods import make_recipe
from rsparse.sparse_model import is_sparse
from tests.benchmark.benches import ALL, SEQ_LEN, Bench, grid
from tests.support.models import tiny_model, tiny_tokenizer

FIT = {"fit_tokens": 40 * SEQ_LEN}
QUICK = "teal:step=0.5,tokens=48"


def texts(files, *names):
    return {"texts": [str(files / f"{name}.txt") for name in names], "tasks": False}


@pytest.fixture
def recipes(monkeypatch):
    """(method, level, options) of each recipe that is made."""
    made, real = [], workbench.make_recipe

    def make_recipe(model, method, sparsity, *, calibration, **options):
        made.append((method, sparsity, options))
        return real(model, method, sparsity, calibration=calibration, **options)

    monkeypatch.setattr(workbench, "make_recipe", make_recipe)
    return made


@pytest.fixture
def short_fits(monkeypatch):
    """Presets that are quick here."""
    short = FitSettings(steps=4, batch_tokens=4 * SEQ_LEN, check_every=2)
    monkeypatch.setattr(FitSettings, "for_device", lambda device: short)


def test_the_record_says_how_it_was_fitted_and_is_what_compensate_gives(files, recipes):
    fitted = f"{QUICK}+compensate:steps=4,batch_tokens=96,check_every=2"
    bench = Bench(files, grid(files, fitted, QUICK, **texts(files, "one")), **FIT, seed=2)
    assert bench.run() == []
    assert recipes == [("teal", 0.4, {"step": "0.5", "tokens": "48"})]  # one for both
    label = "teal-step0.5-tokens48"
    with_fit = bench.record(f"{label}-compensate-batch_tokens96-check_every2-steps4-s0.4-all-one")
    plain = bench.record(f"{label}-s0.4-all-one")
    config = with_fit["config"]
    assert (config["method"], config["preset"]) == ("teal", f"{label}-compensate-batch_tokens96-check_every2-steps4")
    assert [step for step, _ in config["fit_history"]] == [0, 2, 4]
    assert config["fit_seconds"] > 0
    assert 1e7 < config["recipe_peak_bytes"] <= config["fit_peak_bytes"] < 1e11
    assert config["recipe_seconds"] == plain["config"]["recipe_seconds"] > 0
    assert config["compensation"].startswith(
        "calibration.txt, 888 tokens: vectors, levels, factors; 4 steps of 96 tokens, seed 2"
    )
    assert config["sparsity"] == pytest.approx(0.4, abs=1e-4)
    assert plain["config"]["compensation"] == ""
    assert not {"fit_seconds", "fit_peak_bytes", "fit_history"} & (
        plain["config"].keys() | bench.record("dense-all-one")["config"].keys()
    )

    model, tokenizer, text = tiny_model("llama"), tiny_tokenizer(), str(files / "calibration.txt")
    calibration = calibrate(model, tokenizer, text, tokens=480, seq_len=SEQ_LEN, rows=480, seed=2)
    recipe = make_recipe(model, "teal", 0.4, calibration=calibration, step=0.5, tokens=48)
    sparsify(model, recipe, calibration, settle_tokens=480, seed=2)
    windows, heldout = fit_windows(text, tokenizer, SEQ_LEN, 40 * SEQ_LEN)
    settings = FitSettings.parse({"steps": "4", "batch_tokens": "96", "check_every": "2", "seed": "2"}, "cpu")
    found = compensate(model, windows, heldout, settings)
    assert config["fit_settings"] == asdict(settings)
    assert config["fit_history"] == [[step, pytest.approx(kl, rel=1e-6)] for step, kl in found.history]
    expected = evaluate(model, text_windows(str(files / "one.txt"), tokenizer, SEQ_LEN, None), ALL)
    for name in ("perplexity", "kl_to_dense", "achieved_sparsity"):
        assert with_fit["metrics"][name] == pytest.approx(getattr(expected, name), rel=1e-4), name
    assert with_fit["metrics"]["kl_to_dense"] != pytest.approx(plain["metrics"]["kl_to_dense"], rel=1e-4)


@pytest.mark.usefixtures("short_fits")
def test_presets_and_what_they_share(files, recipes):
    bench = Bench(files, grid(files, "joint+compensate", "best", "balanced", **texts(files, "one")), **FIT, seed=2)
    assert bench.run() == []
    own = {"criterion": "column_norm", "lowrank": "false"}
    assert recipes == [("joint", 0.4, {"seed": 2}), ("joint", 0.4, {"seed": 2, **own})]
    names = "joint-compensate", "best", "balanced"
    plain, best, balanced = (bench.record(f"{name}-s0.4-all-one")["config"] for name in names)
    assert [each["preset"] for each in (plain, best, balanced)] == list(names)
    assert {each["method"] for each in (plain, best, balanced)} == {"joint"}
    assert best["criterion"] == ["column_norm"]
    assert best["rank_share"] == 0
    assert plain["recipe_seconds"] == balanced["recipe_seconds"] > 0
    for fitted in (plain, best):
        assert fitted["fit_seconds"] > 0
        assert fitted["compensation"]
    assert "fit_seconds" not in balanced


def test_the_benchs_seed_gives_way_to_a_methods_own(files, recipes, monkeypatch):
    seen = []

    def stop(model, windows, heldout, settings, **options):
        seen.append(settings)
        raise RSparseError("enough")

    monkeypatch.setattr(workbench, "compensate", stop)
    fits = [f"nncf+compensate{options}" for options in ("", ":seed=5,steps=3")]
    joint = "joint:rounds=0,lowrank=false,tokens=24,seed=7"
    Bench(files, grid(files, *fits, joint, **texts(files, "one")), **FIT, seed=2).run()
    assert seen == [FitSettings.parse({"seed": "2"}, "cpu"), FitSettings.parse({"seed": "5", "steps": "3"}, "cpu")]
    assert [options.get("seed") for _, _, options in recipes] == [None, "7"]


def test_another_level_or_option_is_another_recipe(files, recipes):
    methods = "sparse_only", "sparse_only:criterion=column_norm", "sparse_only+compensate:steps=1"
    assert Bench(files, grid(files, *methods, levels=[0.4, 0.5], **texts(files, "one")), **FIT).run() == []
    assert [(sparsity, options) for _, sparsity, options in recipes] == [
        (0.4, {}), (0.4, {"criterion": "column_norm"}), (0.5, {}), (0.5, {"criterion": "column_norm"}),
    ]  # fmt: skip


@pytest.mark.parametrize("error", [RSparseError("the KL is not finite at step 3"), RuntimeError("out of memory")])
def test_a_fit_that_fails_fails_its_cells_alone(files, monkeypatch, error):
    real, models = workbench.compensate, []

    def fails(model, windows, heldout, settings, **options):
        models.append(model)
        if settings.steps == 3:
            raise error
        return real(model, windows, heldout, settings, **options)

    monkeypatch.setattr(workbench, "compensate", fails)
    methods = "sparse_only+compensate:steps=3", "sparse_only", "sparse_only+compensate:steps=2"
    bench = Bench(files, grid(files, *methods, **texts(files, "one", "two")), **FIT)
    failed = bench.run()
    assert len(failed) == 2
    assert all("tiny sparse_only-compensate-steps3 40%" in line and str(error) in line for line in failed)
    assert not is_sparse(models[0])
    kept = [
        f"{name}-all-{text}.json"
        for name in ("sparse_only-compensate-steps2-s0.4", "sparse_only-s0.4")
        for text in ("one", "two")
    ]
    assert bench.names() == sorted([*kept, "dense-all-one.json", "dense-all-two.json"])
    plain = bench.record("sparse_only-s0.4-all-one")["metrics"]
    alone = Bench(files, grid(files, "sparse_only", **texts(files, "one")), **FIT)
    (alone.out / "tiny" / "sparse_only-s0.4-all-one.json").unlink()
    alone.run()
    assert alone.record("sparse_only-s0.4-all-one")["metrics"]["window_nll"] == plain["window_nll"]


def test_the_fits_text_is_read_once(files, monkeypatch):
    reads, real = [], workbench.fit_windows
    monkeypatch.setattr(workbench, "fit_windows", lambda *args: reads.append(args) or real(*args))
    methods = "sparse_only+compensate:steps=1", "sparse_only+compensate:steps=2"
    assert Bench(files, grid(files, *methods, levels=[0.4, 0.5], **texts(files, "one")), **FIT).run() == []
    assert [(data, seq_len, tokens) for data, _, seq_len, tokens in reads] == [(str(files / "calibration.txt"), SEQ_LEN, 960)]


def test_a_folder_of_other_fit_tokens_is_refused(files):
    wanted = grid(files, **texts(files, "one"))
    Bench(files, wanted, **FIT).run()
    other = Bench(files, wanted, fit_tokens=961)
    with pytest.raises(RSparseError, match="holds cells of fit_tokens = 960, and this run has 961"):
        other.run()
    assert other.loads == []


def test_too_few_fit_tokens_are_refused(files):
    Bench(files, grid(files), fit_tokens=2 * SEQ_LEN)
    with pytest.raises(RSparseError, match="--fit-tokens must be 48 or more, got 47"):
        Bench(files, grid(files), fit_tokens=2 * SEQ_LEN - 1)
