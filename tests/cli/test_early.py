"""Bad input that no model is needed to see is found before one is loaded, which may take minutes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rsparse.criteria import names as criteria
from rsparse.methods import names as methods
from tests.cli.conftest import SIZE, bad, good

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
        (["--sparsity", "0.5", "--method", "magic"], "method 'magic' is unknown; choose one of dense, "),
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
