"""Bad input that no model is needed to see is found before one is loaded, which may take minutes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from rsparse.criteria import names as criteria
from rsparse.methods import names as methods
from tests.cli.conftest import SIZE, bad, good
from tests.support.models import tiny_model
from tests.support.recipes import uniform

SPARSIFY = ["sparsify", "dense", "-o", "deep/new"]
WITH_CALIBRATION = [*SPARSIFY, "--calibration", "calibration", "--json", "deep/record.json"]


@pytest.fixture(autouse=True)
def _no_model(here, monkeypatch):
    monkeypatch.setattr(
        "rsparse.checkpoint.from_pretrained", lambda *arguments, **options: pytest.fail("loaded before it checked")
    )
    yield
    assert not (here / "deep").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sparsity", "1"], "sparsity must be in [0, 1), got 1.0"),
        (["--sparsity=-0.1"], "sparsity must be in [0, 1), got -0.1"),
        (["--sparsity", "nan"], "sparsity must be in [0, 1), got nan"),
        (["--sparsity", "0.5", "--method", "magic"], "method 'magic' is unknown; choose one of cats, "),
        (["--sparsity", "0.5", "--method", "_uniform"], "method '_uniform' is unknown"),
        (["--sparsity", "0.5", "--criterion", "taste"], "criterion 'taste' is unknown; choose one of "),
        (["--sparsity", "0.5", "--grouping", "heap"], "grouping must be one of linear, group, got 'heap'"),
        (["--sparsity", "0.5", "--fit", "tight"], "fit must be one of svd, dropped, got 'tight'"),
        (["--sparsity", "0.5", "--rho", "1.5"], "rho must be in [0, 1], got 1.5"),
        (["--sparsity", "0.5", "--rho", "nan"], "rho must be in [0, 1], got nan"),
        (["--sparsity", "0.5", "--method", "sparse_only", "--rho", "0.5"], "method sparse_only takes no option 'rho'"),
        (["--sparsity", "0.5", "--method", "low_rank_only", "--criterion", "paper"], "takes no option 'criterion'"),
        (["--sparsity", "0.5", "--settle-tokens=-1"], "settle_tokens"),
        (["--sparsity", "0.5", "--method", "teal:step=0"], "step must be in (0, 1], got 0.0"),
        (["--sparsity", "0.5", "--method", "wina:allocation=most"], "allocation must be one of greedy, uniform"),
        (["--sparsity", "0.5", "--method", "nncf:levels=up"], "levels must be PATTERN=LEVEL"),
        (["--sparsity", "0.5", "--method", "rsparse:rho=0.5", "--rho", "0.6"], "rho is given twice"),
        (["--recipe", "nowhere.json"], "nowhere.json"),
        ([], "--sparsity"),
    ],
)
def test_options_of_sparsify(options, says):
    bad(says, *WITH_CALIBRATION, *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--quality", "best", "--method", "teal"], "--quality chooses the method; leave out one of the two"),
        (["--quality", "best", "--recipe", "recipe.json"], "--recipe already says it all; leave out --sparsity"),
        (["--quality", "most"], "argument --quality: invalid choice: 'most'"),
        (["--quality", "best", "--rho", "0.9"], "method joint takes no option 'rho'"),
        (["--method", "dense+compensate"], "the dense model has nothing to compensate"),
        (["--method", "teal+compensate:steps=0"], "steps must be at least 1, got 0"),
        (["--method", "teal+compensate:colour=red"], "compensate takes no option 'colour'"),
        (["--method", "searched:population=1"], "population must be 2 or more, got 1"),
        (["--method", "rsparse+compensate", "--sparsity", "0"], "sparsity 0 leaves nothing to compensate"),
        (["--quality", "best", "--seed=-1"], "seed must be 0 or more, got -1"),
        (["--quality", "best", "--fit-data", "gone.txt"], "text file gone.txt does not exist"),
        (["--quality", "best", "--fit-data", "latin.txt"], "text file latin.txt is not UTF-8"),
        (["--quality", "best", "--fit-tokens", "47"], "--fit-tokens must be 48 or more, two windows of 24; got 47"),
        (["--method", "teal+compensate:batch_tokens=23"], "batch_tokens 23 is less than one window of 24 tokens"),
        (["--quality", "fast", "--fit-data", "text.txt"], "--fit-data is for a compensation, and none is asked for"),
        (["--method", "teal", "--fit-data", "text.txt"], "--fit-data is for a compensation, and none is asked for"),
    ],
)
def test_options_of_quality_and_compensation(here, options, says):
    (here / "latin.txt").write_bytes(b"caf\xe9 au lait")
    bad(says, *WITH_CALIBRATION, "--sparsity", "0.5", *options)


def test_quality_and_a_fits_text_beside_a_recipe(here):
    bad("--recipe already says it all; leave out --quality", *WITH_CALIBRATION, "--quality", "best", "--recipe", "recipe.json")
    uniform(tiny_model("llama")).save(here / "recipe.json")
    says = "--fit-data is for a compensation, and none is asked for"
    bad(says, *WITH_CALIBRATION, "--recipe", "recipe.json", "--fit-data", "text.txt")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seq-len", "1100"], "batch_tokens 1024 is less than one window of 1100 tokens"),
        (["--seq-len", "100", "--fit-tokens", "199"], "--fit-tokens must be 200 or more, two windows of 100; got 199"),
    ],
)
def test_windows_of_a_fit_where_the_calibration_is_made_now(options, says):
    bad(says, *SPARSIFY, "--sparsity", "0.5", "--quality", "best", "--data", "text.txt", "--device", "cpu", *options)


def test_a_calibration_whose_text_is_gone(here):
    """It serves without a compensation, and with one that has a text of its own."""
    shutil.copytree(here / "calibration", here / "moved")
    meta = json.loads((here / "moved" / "calibration.json").read_text())
    (here / "moved" / "calibration.json").write_text(json.dumps(meta | {"data": "elsewhere/text.txt"}))
    command = [*SPARSIFY, "--calibration", "moved", "--sparsity", "0.5"]
    says = (
        "text file elsewhere/text.txt does not exist; the calibration was made on it, name a text to compensate on with --fit-"
    )
    bad(says, *command, "--quality", "best")
    for enough in (["--quality", "best", "--fit-data", "text.txt"], ["--quality", "fast"]):
        with pytest.raises(pytest.fail.Exception, match="loaded before"):
            good(*command, *enough)


@pytest.mark.parametrize("options", [["--grouping", "group", "--fit", "svd", "--criterion", "paper", "--rho", "0"], []])
def test_good_options_get_as_far_as_the_model(options):
    with pytest.raises(pytest.fail.Exception, match="loaded before"):
        good(*WITH_CALIBRATION, "--sparsity", "0", *options)


TEXTS = {
    "missing.txt": (None, "does not exist"),
    "./missing": (None, "does not exist"),
    "missing.jsonl": (None, "missing.jsonl"),
    "empty.txt": (b" \n", "no text"),
    "latin.txt": (b"caf\xe9 au lait", "UTF-8"),
    "latin.jsonl": (b'{"text": "caf\xe9"}\n', "UTF-8"),
    "bad.jsonl": (b'{"txt": 3}\n{"text": "the river"}\n', "line 1"),
    "cut.jsonl": (b'{"text": "the ri', "line 1"),
    "bundled:more": (None, "not 'more'"),
}


@pytest.mark.parametrize("verb", [["sparsify", "dense", "--sparsity", "0.5"], ["calibrate", "dense"]], ids=lambda verb: verb[0])
@pytest.mark.parametrize("name", TEXTS)
def test_text(here, verb, name):
    content, says = TEXTS[name]
    if content is not None:
        (here / name).write_bytes(content)
    bad(says, *verb, *SIZE, "-o", "deep/new", "--data", name)


@pytest.mark.parametrize("data", ["text.txt", "bundled", "bundled:test", "some/dataset:config:split"])
def test_good_text_and_the_hubs_get_as_far_as_the_model(data):
    with pytest.raises(pytest.fail.Exception, match="loaded before"):
        good("calibrate", "dense", *SIZE, "-o", "deep/new", "--data", data)


def test_help_names_what_there_is():
    text = " ".join(good("sparsify", "--help").out.split())
    assert f"{', '.join(methods())} (default rsparse)" in text
    assert f"what scores a channel: {', '.join(criteria())}" in text


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom rsparse.cli import main\n"
        "try: main(['sparsify', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n")


def test_a_hub_out_of_reach_is_one_line(tmp_path):
    """huggingface_hub tells of each of its tries; the sleeps between them are left out here."""
    code = (
        "import sys, time\ntime.sleep = lambda seconds: None\nfrom rsparse.cli import main\n"
        "sys.exit(main(['generate', 'some/hub-model', '--prompt', 'the']))"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert found.returncode == 2
    assert found.stderr.startswith("rsparse: error: cannot load model some/hub-model: ")
    assert found.stderr.count("\n") == 1, found.stderr
