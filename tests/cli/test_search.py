"""`rsparse search`: its files, its workers, and what it refuses before the model loads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import matplotlib.image
import pytest

import rsparse
from rsparse.cli import search as verb
from rsparse.recipe import Recipe
from rsparse.sparse_model import state
from tests.cli.conftest import bad, good
from tests.support.folders import dense_folder

SMALL = ["--sparsity", "0.5", "--population", "3", "--generations", "2", "--samples", "4"]
SEARCH = ["search", "dense", "--calibration", "calibration"]


@pytest.fixture(scope="module")
def found(made, tmp_path_factory):
    """The folder of a finished search: r.json, r.db, record.json, r.png; out and err. Leave it as it is."""
    folder = tmp_path_factory.mktemp("found")
    outcome = good(
        "search", made / "dense", "--calibration", made / "calibration", *SMALL,
        "-o", folder / "r.json", "--json", folder / "record.json", "--plot", folder / "r.png",
    )  # fmt: skip
    return folder, outcome


def test_it_writes_recipe_record_and_plot(found):
    folder, _ = found
    assert sorted(path.name for path in folder.iterdir()) == ["r.db", "r.json", "r.png", "record.json"]
    recipe, record = Recipe.load(folder / "r.json"), json.loads((folder / "record.json").read_text())
    assert recipe.sparsity == pytest.approx(0.5)
    assert not recipe.settled
    config, metrics = record["config"], record["metrics"]
    assert config["preset"] == "searched"
    assert config["recipe_sha"] == recipe.sha()
    assert config["calibration"] == "text.txt, 768 tokens"
    expected = {"sparsity": 0.5, "population": 3, "generations": 2, "samples": 4, "objective": "perplexity"}
    expected |= {"criterion": "paper", "fit": "svd", "grouping": "linear", "seed": 0, "workers": 1}
    assert {name: config[name] for name in expected} == expected
    assert config["weights_sha"]
    assert metrics["evaluations"] == 6
    assert len(metrics["history"]) == 2
    assert metrics["fitness"] == metrics["history"][-1] <= metrics["sparse_only_fitness"]
    assert metrics["search_seconds"] > 0
    assert matplotlib.image.imread(folder / "r.png").std() > 0.05


def test_what_it_says(found):
    folder, outcome = found
    best, sparse_only, rho = outcome.out.splitlines()
    assert best.startswith("best        perplexity ")
    assert sparse_only.startswith("sparse-only perplexity ")
    assert float(best.split()[2]) <= float(sparse_only.split()[2])
    assert rho.startswith("rho is 1 in ")
    assert " of 14 units" in rho
    assert outcome.err.startswith("[0/6] candidates are judged\n[1/6] ")
    for number in range(1, 7):
        assert f"[{number}/6] generation {(number - 1) // 3}: best " in outcome.err
    assert "evaluations a minute, about 0 min left" in outcome.err
    assert f"--recipe {folder / 'r.json'} " in outcome.err.splitlines()[-1]


def test_the_recipe_can_be_sparsified(found, here):
    good("sparsify", "dense", "--recipe", found[0] / "r.json", "--calibration", "calibration", "-o", "new")
    settled, searched = state(rsparse.from_pretrained("new", device="cpu")[0]).recipe, Recipe.load(found[0] / "r.json")
    assert settled.settled
    assert settled.with_thresholds(dict.fromkeys(settled.units)).sha() == searched.sha()


def test_a_second_call_goes_on_where_the_first_stopped(found, here):
    for name in ("r.json", "r.db"):
        shutil.copy(found[0] / name, here / name)
    before = (here / "r.json").read_bytes()
    bad("r.json exists; --overwrite replaces it", *SEARCH, *SMALL, "-o", "r.json")
    outcome = good(*SEARCH, *SMALL, "-o", "r.json", "--overwrite", "--json", "again.json")
    assert "[" not in outcome.err
    assert json.loads((here / "again.json").read_text())["metrics"]["evaluations"] == 0
    assert Recipe.load("r.json").sha() == Recipe.load(found[0] / "r.json").sha()
    assert len((here / "r.json").read_bytes()) == pytest.approx(len(before), abs=200)  # but for the model's path


def test_two_workers_write_the_same_file(found, here, monkeypatch):
    """The first worker begins when the second, a process, has done a candidate."""
    import rsparse.search
    from rsparse.search.run import _Search

    real, helpers, start = rsparse.search.search, [], verb._start_helpers

    def starting(*arguments):
        helpers.extend(start(*arguments))
        return helpers

    def waiting(model, calibration, settings, *, storage, study, begin, report):
        watch = _Search(model, calibration, settings, storage, study, report)
        deadline = time.time() + 60
        while not watch.study.done() and time.time() < deadline and helpers[0].poll() is None:
            time.sleep(0.05)
        return real(model, calibration, settings, storage=storage, study=study, begin=begin, report=report)

    monkeypatch.setattr(verb, "_start_helpers", starting)
    monkeypatch.setattr(rsparse.search, "search", waiting)
    good(*SEARCH, *SMALL, "-o", "deep/r.json", "--workers", "2", "--json", "record.json")
    record = json.loads((here / "record.json").read_text())
    assert record["config"]["workers"] == 2
    assert record["metrics"]["evaluations"] < 6
    assert record["config"]["recipe_sha"] == Recipe.load(found[0] / "r.json").sha()
    assert [each.returncode is None for each in helpers] == [False]


def test_helpers_are_told_all_that_matters(here, monkeypatch):
    from rsparse.cli._main import build_parser

    commands = []
    monkeypatch.setattr(verb.subprocess, "Popen", lambda command, **options: commands.append(command))
    options = [
        *SMALL,
        "--objective",
        "kl",
        "--criterion",
        "magnitude",
        "--fit",
        "dropped",
        "--grouping",
        "group",
        "--seed",
        "4",
    ]
    options += ["--study", "other", "--storage", "journal:j", "--dtype", "bfloat16", "--device", "cpu", "--workers", "3"]
    given = build_parser().parse_args([*SEARCH, *options, "-o", "r.json"])
    verb._start_helpers(given, "journal:j")
    assert len(commands) == 2
    for command in commands:
        assert command[1:3] == ["-m", "rsparse.cli"]
        helper = vars(build_parser().parse_args(command[3:]))
        differ = {name for name, value in vars(given).items() if helper[name] != value}
        assert differ == {"join", "out", "workers"}
        assert helper["join"]
        assert helper["workers"] == 1


def test_joining_helps_and_writes_no_recipe(found, here):
    before = sorted(os.listdir())
    outcome = good(*SEARCH, *SMALL, "--join", "--storage", "journal:shared")
    assert outcome.out == ""
    assert sorted(os.listdir()) == sorted([*before, "shared"])
    good(*SEARCH, *SMALL, "--storage", "journal:shared", "-o", "r.json", "--json", "record.json")
    assert json.loads((here / "record.json").read_text())["metrics"]["evaluations"] == 0
    assert Recipe.load("r.json").sha() == Recipe.load(found[0] / "r.json").sha()


def test_kl_is_named_where_it_is_the_objective(here):
    outcome = good(*SEARCH, *SMALL, "--objective", "kl", "--grouping", "group", "-o", "r.json", "--plot", "r.svg")
    assert outcome.out.startswith("best        KL ")
    assert " of 8 units" in outcome.out
    assert (here / "r.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--population", "4"], "its population is 3, here it is 4"),
        (["--objective", "kl"], "its objective is perplexity, here it is kl"),
        (["--sparsity", "0.6"], "its sparsity is 0.5, here it is 0.6"),
        (["--dtype", "bfloat16"], "its dtype is float32, here it is bfloat16"),
        (["--samples", "5"], "its samples is 4, here it is 5"),
    ],
)
def test_another_searchs_study(found, here, options, says):
    shutil.copy(found[0] / "r.db", here / "new.db")
    bad(says, *SEARCH, *SMALL, *options, "-o", "new.json")
    assert not (here / "new.json").exists()


def test_another_model_with_the_same_study(found, here):
    shutil.copy(found[0] / "r.db", here / "new.db")
    dense_folder(here / "other", hidden_act="gelu", tie_word_embeddings=False)
    bad("its model is ", "search", "other", "--calibration", "calibration", *SMALL, "-o", "new.json")


@pytest.mark.parametrize("storage", ["sqlite:///text.txt", "journal:text.txt", "postgresql://127.0.0.1:9/none", "nonsense"])
def test_storages_that_cannot_be_opened(here, storage):
    before = (here / "text.txt").read_bytes()
    bad("cannot open the study's storage", *SEARCH, *SMALL, "--storage", storage, "-o", "new.json")
    assert (here / "text.txt").read_bytes() == before
    assert not (here / "new.json").exists()


EARLY = [*SEARCH, *SMALL, "-o", "deep/new.json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*EARLY, "--sparsity", "1"], "between 0 and 1, got 1.0"),
        ([*EARLY, "--sparsity", "nan"], "between 0 and 1, got nan"),
        ([*EARLY, "--population", "1"], "population must be 2 or more"),
        ([*EARLY, "--generations", "0"], "generations must be 1 or more"),
        ([*EARLY, "--seed=-1"], "seed must be 0 or more"),
        ([*EARLY, "--samples", "33"], "the calibration has 32 windows, and the search samples 33"),
        ([*EARLY, "--objective", "taste"], "objective must be one of perplexity, kl"),
        ([*EARLY, "--fit", "tight"], "fit must be one of svd, dropped"),
        ([*EARLY, "--grouping", "heap"], "grouping must be one of linear, group"),
        ([*EARLY, "--criterion", "taste"], "criterion 'taste' is unknown"),
        ([*EARLY, "--criterion", "residual_norm"], "cannot score by residual_norm"),
        ([*EARLY, "--workers", "0"], "--workers must be 1 or more, got 0"),
        ([*EARLY, "--calibration", "dense"], "dense is not a calibration"),
        ([*EARLY, "--plot", "p.docx"], "a picture is a .png, .svg or .pdf file"),
        ([*EARLY, "--plot", "text.txt/p.png"], "text.txt is a file"),
        ([*EARLY, "--json", "dense"], "--json dense is a folder"),
        ([*EARLY, "--join"], "writes no -o"),
        ([*SEARCH, *SMALL, "--join"], "--storage"),
        ([*SEARCH, *SMALL], "-o"),
        ([*SEARCH, *SMALL, "-o", "recipe.db"], "recipe.db"),
        ([*SEARCH, *SMALL, "-o", "dense"], "dense is a folder; name a file"),
        ([*SEARCH, *SMALL, "-o", "text.txt"], "text.txt exists; --overwrite replaces it"),
        ([*SEARCH, *SMALL, "-o", "text.txt/r.json"], "text.txt is a file"),
        ([*SEARCH, "-o", "deep/new.json"], "--sparsity"),
        (["search", "dense", *SMALL, "-o", "deep/new.json"], "--calibration"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_refused_before_the_model_loads(here, monkeypatch, words, says):
    monkeypatch.setattr("rsparse.checkpoint.from_pretrained", lambda *a, **o: pytest.fail("loaded before it checked"))
    monkeypatch.setattr(verb, "_start_helpers", lambda *a: pytest.fail("started helpers before it checked"))
    before = sorted(os.listdir())
    bad(says, *words)
    assert sorted(os.listdir()) == before


def test_good_options_get_as_far_as_the_model(here, monkeypatch):
    monkeypatch.setattr("rsparse.checkpoint.from_pretrained", lambda *a, **o: pytest.fail("loaded"))
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        good(*EARLY, "--plot", "p.png", "--json", "j.json")
    assert not (here / "deep").exists()


def test_a_missing_or_a_sparse_model(here):
    bad("./nowhere", "search", "./nowhere", "--calibration", "calibration", *SMALL, "-o", "deep/new.json")
    bad("dense model", "search", "sparse", "--calibration", "calibration", *SMALL, "-o", "deep/new.json")
    assert not (here / "deep").exists()


def test_a_budget_that_no_unit_fits_leaves_no_study(here):
    bad("leaves less than one of its 48 input channels", *EARLY, "--sparsity", "0.99")
    assert not (here / "deep" / "new.db").exists()


def test_helpers_go_when_the_first_worker_fails(here, monkeypatch):
    helpers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])]
    monkeypatch.setattr(verb, "_start_helpers", lambda *a: helpers)
    bad("./nowhere", "search", "./nowhere", "--calibration", "calibration", *SMALL, "--workers", "2", "-o", "new.json")
    assert helpers[0].returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--population", "4"], "its population is 3, here it is 4"),
        (["--samples", "5"], "its samples is 4, here it is 5"),
        (["--population", "4", "--join", "--storage", "sqlite:///new.db"], "its population is 3, here it is 4"),
    ],
)
def test_another_searchs_study_is_refused_before_the_model_loads(found, here, monkeypatch, options, says):
    monkeypatch.setattr("rsparse.checkpoint.from_pretrained", lambda *a, **o: pytest.fail("loaded before it checked"))
    monkeypatch.setattr(verb, "_start_helpers", lambda *a: pytest.fail("started helpers before it checked"))
    shutil.copy(found[0] / "r.db", here / "new.db")
    bad(says, *SEARCH, *SMALL, *options, *([] if "--join" in options else ["-o", "new.json"]))


def helper_that(code):
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_a_helper_that_dies_early_is_named_and_the_search_goes_on(found, here, monkeypatch):
    import rsparse.search

    real = rsparse.search.search
    helpers = [
        helper_that("import sys; sys.exit('one line\\nrsparse: error: no room\\n')"),
        helper_that("raise SystemExit(3)"),
        helper_that("import sys; print('all is well', file=sys.stderr)"),
        helper_that("import sys, time; print('busy', file=sys.stderr, flush=True); time.sleep(600)"),
    ]

    def after_them(*arguments, **options):
        for helper in helpers[:3]:
            helper.wait(30)
        time.sleep(0.2)
        return real(*arguments, **options)

    monkeypatch.setattr(verb, "_start_helpers", lambda *a: helpers)
    monkeypatch.setattr(rsparse.search, "search", after_them)
    outcome = good(*SEARCH, *SMALL, "-o", "r.json", "--workers", "5")
    lines = [line for line in outcome.err.splitlines() if "helper" in line]
    assert sorted(lines) == [
        "a helper ended early (exit code 1: rsparse: error: no room); the search goes on without it",
        "a helper ended early (exit code 3: it said nothing); the search goes on without it",
    ]
    assert helpers[3].returncode == -signal.SIGTERM
    assert Recipe.load("r.json").sha() == Recipe.load(found[0] / "r.json").sha()


def test_a_helpers_words_are_read(here, monkeypatch):
    """A full pipe would stop it."""
    from rsparse.cli._main import build_parser

    started, real = [], subprocess.Popen
    talk = "import sys; [print('x' * 99, file=sys.stderr) for _ in range(5000)]; sys.exit(4)"
    monkeypatch.setattr(
        verb.subprocess,
        "Popen",
        lambda command, **options: started.append(real([sys.executable, "-c", talk], **options)) or started[-1],
    )
    args = build_parser().parse_args([*SEARCH, *SMALL, "--workers", "2", "-o", "r.json"])
    (helper,) = verb._start_helpers(args, "journal:j")
    said = []
    monkeypatch.setattr(verb.options, "say", said.append)
    verb._watch(helper, threading.Event())
    assert said == [f"a helper ended early (exit code 4: {'x' * 99}); the search goes on without it"]
