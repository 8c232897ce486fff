"""One folder with a tiny dense model, text, a calibration and a sparse checkpoint, made by the verbs themselves."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from rsparse.cli import main
from tests.support.folders import dense_folder
from tests.support.models import words

SIZE = ["--tokens", "768", "--seq-len", "24", "--rows", "200"]


@dataclass(frozen=True)
class Outcome:
    """What a shell would see."""

    code: int
    out: str
    err: str


def run(*arguments: str | Path) -> Outcome:
    """`rsparse ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse
            code = leaving.code if isinstance(leaving.code, int) else 1
    return Outcome(code, out.getvalue(), err.getvalue().replace("\r", ""))


def good(*arguments: str | Path) -> Outcome:
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome


def bad(says: str, *arguments: str | Path) -> None:
    """Exit code 2 and one line on stderr that contains `says`."""
    outcome = run(*arguments)
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("rsparse: error: "), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.endswith("\n")
    assert says in outcome.err
    assert outcome.code == 2


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense/, text.txt, lines.jsonl, calibration/, sparse/, recipe.json: leave them as they are."""
    folder = tmp_path_factory.mktemp("made")
    dense_folder(folder / "dense")
    (folder / "text.txt").write_text(words(700, seed=1))
    (folder / "test.txt").write_text(words(400, seed=2))
    good("calibrate", folder / "dense", "--data", folder / "text.txt", *SIZE, "-o", folder / "calibration")
    good(
        "sparsify", folder / "dense", "--sparsity", "0.5", "--rho", "0.6", "--calibration", folder / "calibration",
        "-o", folder / "sparse", "--json", folder / "sparsify.json",
    )  # fmt: skip
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; `dense`, `sparse` and the rest are links in it, so that lines are short."""
    for path in made.iterdir():
        os.symlink(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
