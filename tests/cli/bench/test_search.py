"""rsparse bench search, as a shell sees it."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from rsparse.recipe import Recipe
from tests.cli.conftest import bad, good

SMALL = ["--sparsity", "0.5", "--populations", "3,2", "--generations", "2", "--samples", "4"]
TRAINED = ["bench", "search", "dense", "--calibration", "calibration", *SMALL, "-o", "out"]
SHAPE = ["bench", "search", "--shape", "tiny-llama", "--seq-len", "24", *SMALL, "-o", "out"]
FILES = ["population-2.db", "population-2.json", "population-3.db", "population-3.json", "recipe-2.json", "recipe-3.json"]
FILES += ["search.png", "settings.json", "table.md"]


def loads_nothing(monkeypatch):
    monkeypatch.setattr("rsparse.checkpoint.from_pretrained", lambda *a, **o: pytest.fail("loaded"))
    monkeypatch.setattr("rsparse.benchmark.shapes.random_model", lambda *a, **o: pytest.fail("made a model"))


@pytest.fixture(scope="module")
def done(made, tmp_path_factory):
    """The outcome in a folder with `out` of the tiny model: leave it as it is."""
    folder = tmp_path_factory.mktemp("done")
    words = [word if word not in ("dense", "calibration") else str(made / word) for word in TRAINED[:-1]]
    return folder, good(*words, folder / "out")


def test_records_table_and_plot(done):
    folder, outcome = done
    assert sorted(os.listdir(folder / "out")) == FILES
    first, second, last = outcome.out.splitlines()
    assert first.startswith("population 3: 6 candidates in ")
    assert second.startswith("population 2: 4 candidates in ")
    assert last == f"{folder / 'out'}: 2 records, table.md and search.png"
    assert "population 3 [6/6] generation 1: best " in outcome.err
    table = (folder / "out" / "table.md").read_text().splitlines()
    assert table[0] == "## Search on dense"
    assert [line[:4] for line in table[-2:]] == ["| 2 ", "| 3 "]
    assert (folder / "out" / "search.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "out" / "population-3.json").read_text())
    assert sorted(record) == ["config", "env", "metrics", "run", "schema"]
    assert record["config"]["calibration"] == "text.txt, 768 tokens"
    assert "weights" not in record["config"]


def test_again_it_only_draws(done, here, monkeypatch):
    shutil.copytree(done[0] / "out", here / "out")
    (here / "out" / "table.md").unlink()
    loads_nothing(monkeypatch)
    again = good(*TRAINED)
    assert again.out == "out: 2 records, table.md and search.png\n"
    assert sorted(os.listdir(here / "out")) == FILES


def test_a_study_of_the_folder_is_one_of_rsparse_search(done, here):
    shutil.copytree(done[0] / "out", here / "out")
    words = ["--sparsity", "0.5", "--population", "3", "--generations", "2", "--samples", "4"]
    outcome = good(
        "search", "dense", "--calibration", "calibration", *words, "--storage", "sqlite:///out/population-3.db", "-o", "r.json"
    )
    assert "[" not in outcome.err
    assert Recipe.load("r.json").sha() == Recipe.load("out/recipe-3.json").sha()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--samples", "5"], "out holds cells of"),
        (["--seed", "1"], "out holds cells of seed = 0, and this run has 1; choose another folder"),
        (["--generations", "3"], "generations = 2, and this run has 3"),
        (["--dtype", "bfloat16"], "dtype = float32, and this run has bfloat16"),
        (["--fit", "dropped"], "fit = svd, and this run has dropped"),
    ],
)
def test_a_folder_of_other_settings_is_refused_before_the_model_loads(done, here, monkeypatch, options, says):
    shutil.copytree(done[0] / "out", here / "out")
    loads_nothing(monkeypatch)
    bad(says, *TRAINED, *options, "--populations", "4")


def test_a_folder_of_other_operators_is_refused_before_the_model_loads(done, here, monkeypatch):
    """As an earlier version of this library has left it: a table is of one rule."""
    shutil.copytree(done[0] / "out", here / "out")
    kept = json.loads((here / "out" / "settings.json").read_text())
    del kept["settings"]["operators"]
    (here / "out" / "settings.json").write_text(json.dumps(kept))
    loads_nothing(monkeypatch)
    bad("out holds cells of operators = ", *TRAINED, "--populations", "4")


def test_more_populations_may_join(done, here):
    shutil.copytree(done[0] / "out", here / "out")
    assert good(*TRAINED, "--populations", "4").out.splitlines()[-1] == "out: 3 records, table.md and search.png"


def test_another_model_or_suite_in_the_folder_is_refused(done, here, monkeypatch):
    shutil.copytree(done[0] / "out", here / "out")
    loads_nothing(monkeypatch)
    bad("out holds cells of calibration = ", *SHAPE)
    shutil.copytree(here / "dense", here / "other")
    (here / "other" / "config.json").write_text((here / "other" / "config.json").read_text() + " ")
    bad("out holds cells of model = dense, ", *TRAINED[:2], "other", *TRAINED[3:])
    (here / "out" / "settings.json").write_text('{"settings": {"seq_len": 24}, "tasks": {}, "models": {}, "texts": {}}')
    bad("out holds cells of", *TRAINED)


def test_another_searchs_study_is_refused_before_the_model_loads(done, here, monkeypatch):
    (here / "out").mkdir()
    shutil.copy(done[0] / "out" / "population-2.db", here / "out" / "population-3.db")
    loads_nothing(monkeypatch)
    bad("its population is 2, here it is 3", *TRAINED)


def test_a_model_that_cannot_be_made_leaves_nothing(here, monkeypatch):
    def random_model(*given):
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr("rsparse.benchmark.shapes.random_model", random_model)
    bad("out of memory (tried to allocate)", *SHAPE)
    assert not (here / "out").exists()


def test_random_weights_of_a_shape(here, monkeypatch):
    outcome = good(*SHAPE)
    assert sorted(os.listdir("out")) == ["calibration", *FILES]
    assert "tiny-llama: model in " in outcome.err
    record = json.loads((here / "out" / "population-2.json").read_text())
    config, metrics = record["config"], record["metrics"]
    assert (config["model"], config["weights"], config["seq_len"]) == ("tiny-llama", "random", 24)
    assert config["calibration"] == "random tokens, 96 tokens"
    assert metrics["tokens_per_candidate"] == 96
    assert metrics["factors_seconds"] > 0
    assert "random, float32" in (here / "out" / "table.md").read_text()
    # The model is made again, and goes on with the study and the calibration that are there.
    (here / "out" / "population-2.json").unlink()
    monkeypatch.setattr("rsparse.calibration.observe.calibrate_windows", lambda *a, **o: pytest.fail("calibrated again"))
    again = good(*SHAPE)
    assert "generation" not in again.err
    assert json.loads((here / "out" / "population-2.json").read_text())["metrics"] == metrics
    loads_nothing(monkeypatch)
    assert good(*SHAPE).out == "out: 2 records, table.md and search.png\n"


def test_a_shape_is_fitted_to_its_rows_where_asked(here):
    good(*SHAPE, "--fit", "dropped", "--objective", "kl", "--populations", "2")
    assert json.loads((here / "out" / "calibration" / "calibration.json").read_text())["rows"] == 4 * 23
    assert "KL to dense" in (here / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("name a MODEL, or a --shape", ["bench", "search", *SMALL, "-o", "out"]),
        ("name a MODEL, or a --shape", [*TRAINED, "--shape", "tiny-llama"]),
        ("leave --calibration out", [*SHAPE, "--calibration", "calibration"]),
        ("MODEL needs its --calibration DIR", ["bench", "search", "dense", *SMALL, "-o", "out"]),
        ("--seq-len is for a --shape", [*TRAINED, "--seq-len", "24"]),
        ("shape 'llama-9' is unknown", [*SHAPE, "--shape", "llama-9"]),
        ("must have from 2 to 256 tokens, got 257", [*SHAPE, "--seq-len", "257"]),
        ("must have from 2 to 256 tokens, got 0", [*SHAPE, "--seq-len", "0"]),
        ("must have from 2 to 256 tokens, got 2048", ["bench", "search", "--shape", "tiny-llama", *SMALL, "-o", "out"]),
        ("--populations '3,x' must be whole numbers", [*TRAINED, "--populations", "3,x"]),
        ("--populations ',' must be whole numbers", [*TRAINED, "--populations", ","]),
        ("population 3 is named twice", [*TRAINED, "--populations", "3,4,3"]),
        ("population must be 2 or more, got 1", [*TRAINED, "--populations", "3,1"]),
        ("between 0 and 1, got 1.0", [*TRAINED, "--sparsity", "1"]),
        ("objective must be one of", [*SHAPE, "--objective", "taste"]),
        ("the calibration has 32 windows, and the search samples 33", [*TRAINED, "--samples", "33"]),
        ("dense is not a calibration", [*TRAINED, "--calibration", "dense"]),
        ("text.txt is a file; name a folder", [*TRAINED, "-o", "text.txt"]),
        ("device 'abacus'", [*SHAPE, "--device", "abacus"]),
    ],
)
def test_bad_input_is_found_before_the_model_loads(here, monkeypatch, says, words):
    loads_nothing(monkeypatch)
    before = sorted(os.listdir())
    bad(says, *words)
    assert sorted(os.listdir()) == before
