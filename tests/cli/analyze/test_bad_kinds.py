"""What users get wrong: one line, exit code 2, nothing written, and mostly before a model is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import bad, good

MODEL = "no-such-model/at/all"
WINDOWS = ["--data", "test.txt", "--seq-len", 24, "--max-tokens", 96]
CALIBRATED = ["--data", "test.txt", "--calibration", "calibration"]


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("--levels '0.5,x' must be numbers between 0 and 1", ["sensitivity", *WINDOWS, "--levels", "0.5,x"]),
        ("--levels '1'", ["sensitivity", *WINDOWS, "--levels", "1"]),
        ("criterion 'magic' is unknown", ["sensitivity", *WINDOWS, "--criterion", "magic"]),
        ("--sink-tokens must be from 0 to below the window's 24, got 24", ["sensitivity", *WINDOWS, "--sink-tokens", 24]),
        ("--max-tokens 8 is less than one window", ["sensitivity", "--data", "test.txt", "--max-tokens", 8]),
        ("--seq-len must be 2 or more", ["multi-phase", "--data", "test.txt", "--seq-len", 1]),
        ("text file none.txt does not exist", ["multi-phase", "--data", "none.txt"]),
        ("--phases '1.5' must be whole numbers", ["multi-phase", *WINDOWS, "--phases", "1.5"]),
        ("--samples '0'", ["importance", "--data", "test.txt", "--samples", "0"]),
        ("two --data are called test.txt", ["importance", "--data", "test.txt", "--data", "test.txt"]),
        ("cannot read recipe none.json", ["rank", "--recipe", "none.json"]),
        ("none.json is not a record of `rsparse analyze importance`", ["rank", "--importance", "none.json"]),
        ("none is not a calibration", ["rank", "--calibration", "none"]),
        ("--rho must be between 0 and 1, got 1", ["rank", "--rho", "1"]),
        ("--sparsity must be between 0 and 1, got 0", ["rank", "--sparsity", "0"]),
        ("--sparsity is of the inputs of a calibration; name it with --calibration", ["rank", "--sparsity", "0.5"]),
        ("--rho is of the inputs of a calibration", ["rank", "--rho", "0.9"]),
        ("dense is not a calibration", ["activations", "--calibration", "dense"]),
        ("--rhos '2' must be numbers from 0 to 1", ["rho", *CALIBRATED, "--rhos", "2"]),
        ("--sparsity must be between 0 and 1, got 1.0", ["rho", *CALIBRATED, "--sparsity", "1"]),
        ("criterion 'magic'", ["rho", *CALIBRATED, "--criterion", "magic"]),
        ("fit must be one of", ["rho", *CALIBRATED, "--fit", "magic"]),
        ("--settle-tokens must be 0", ["rho", *CALIBRATED, "--settle-tokens=-1"]),
        ("leaves nothing sparse", ["sparsity", *CALIBRATED, "--token-policy", "dense"]),
        ("method 'magic' is unknown", ["sparsity", *CALIBRATED, "--method", "magic"]),
        ("fits a compensation", ["sparsity", *CALIBRATED, "--method", "teal+compensate"]),
        ("two --method are called teal", ["sparsity", *CALIBRATED, "--method", "teal", "--method", "teal"]),
        ("token policy 'most' is unknown", ["token-policy", *WINDOWS, "--policies", "most"]),
        ("--policies names no token policy", ["token-policy", *WINDOWS, "--policies", ","]),
    ],
)
def test_before_the_model_loads(here, says, arguments):
    bad(says, "analyze", arguments[0], MODEL, *arguments[1:], "-o", "out")
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("this analysis is of a dense model", ["rank", "sparse"]),
        (
            "--block must be from 0 to 1, got 7",
            ["importance", "dense", "--data", "test.txt", "--seq-len", 24, "--samples", 1, "--block", 7],
        ),
        ("fills", ["importance", "dense", "--data", "test.txt", "--samples", 500]),
        ("is dense; name a sparse checkpoint", ["token-policy", "dense", *WINDOWS]),
        ("two or more", ["rho", "dense", *CALIBRATED, "--seq-len", 24, "--max-tokens", 24]),
    ],
)
def test_after_it_is_loaded(here, says, arguments):
    bad(says, "analyze", *arguments, "-o", "out")
    assert not (here / "out" / f"{arguments[0]}.json").exists()


def test_output_folders(here):
    (here / "file").write_text("text")
    bad("file is a file", "analyze", "rank", MODEL, "-o", "file")
    bad("file is a file", "analyze", "rank", MODEL, "-o", "file/under")
    (here / "other").mkdir()
    (here / "other" / "rank.json").write_text('{"config": {"model": "another"}}')
    bad("other/rank.json is of another; choose another -o for dense", "analyze", "rank", "dense", "-o", "other")
    (here / "other" / "rank.json").write_text("{}")
    bad("other/rank.json is not a record", "analyze", "rank", "dense", "-o", "other")


def test_a_recipe_without_its_calibration(here):
    from rsparse import from_pretrained
    from tests.support.recipes import uniform

    uniform(from_pretrained("dense", device="cpu")[0], 0.5).save("recipe.json")
    bad("name it with --calibration", "analyze", "token-policy", MODEL, *WINDOWS, "--recipe", "recipe.json", "-o", "out")


def test_points_of_other_settings(here):
    command = ["analyze", "sensitivity", "dense", *WINDOWS, "--levels", "0.5", "--grouping", "group", "-o", "out"]
    good(*command)
    bad("holds cells of sink_tokens = 1, and this run has 2", *command, "--sink-tokens", 2)


def test_help_loads_no_torch():
    code = (
        "import sys\nfrom rsparse.cli import main\n"
        "try: main(['analyze', 'rho', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n")
