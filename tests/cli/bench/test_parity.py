"""rsparse bench parity, as a shell sees it."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import bad, good

SIZE = ["--prompt-tokens", "6", "--window-tokens", "18", "--windows", "2", "--device", "cpu"]
COMMAND = ["bench", "parity", "sparse", "--text", "test.txt", *SIZE]


def test_a_checkpoint(here):
    outcome = good(*COMMAND, "--json", "parity.json")
    (line,) = outcome.out.splitlines()
    assert line.startswith("modules ")
    assert "; reference steps with the modules' masks " in line
    assert line.endswith(" over 22 tokens")
    record = json.loads((here / "parity.json").read_text())
    config, metrics = record["config"], record["metrics"]
    assert record["env"]["backend"] == "reference"
    wanted = {"suite": "parity", "model": "sparse", "method": "rsparse", "dtype": "float32", "data": "test.txt"}
    wanted |= {"token_policy": "decode", "prompt_tokens": 6, "window_tokens": 18, "windows": 2}
    assert config == config | wanted
    assert list(metrics) == ["tokens", "perplexity_modules", "imposed_masks", "own_masks"]
    assert metrics["imposed_masks"]["kl"] < 1e-6


def test_a_dense_model(here):
    line = good("bench", "parity", "dense", *COMMAND[3:], "--json", "parity.json").out
    assert "; reference steps " in line
    assert "masks" not in line
    assert list(json.loads((here / "parity.json").read_text())["metrics"]) == ["tokens", "perplexity_modules", "own_masks"]


def test_a_text_that_is_too_short(here):
    (here / "short.txt").write_text("the river")
    for text, windows, says in (
        ("short.txt", "2", "give more text or ask for shorter windows"),
        ("test.txt", "999", " of 999 windows of 18 tokens; give more text, or lower --windows or --window-tokens"),
    ):
        bad(says, *COMMAND, "--text", text, "--windows", windows)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--windows", "0"], "--windows must be 2 or more, got 0"),
        (["--prompt-tokens", "18"], "--window-tokens must be 20 or more behind a prompt of 18, got 18"),
        (["--text", "gone.txt"], "text file gone.txt does not exist"),
        (["--json", "."], "--json . is a folder"),
        (["--backend", "triton"], "backend triton: it needs a CUDA GPU"),
        (["--backend", "fast"], "no backend 'fast'"),
        (["--dtype", "int4"], "dtype 'int4' is unknown"),
    ],
)
def test_bad_input_is_found_before_the_model_loads(monkeypatch, options, says):
    monkeypatch.setattr("rsparse.checkpoint.from_pretrained", lambda *a, **o: pytest.fail("loaded"))
    bad(says, *COMMAND, *options)


def test_a_text_is_asked_for():
    bad("--text", "bench", "parity", "sparse")


def test_help_says_why_there_are_two_numbers():
    assert "Rounding decides masks" in good("bench", "parity", "--help").out
