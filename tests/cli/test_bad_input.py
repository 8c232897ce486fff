"""What users get wrong: exit code 2, one line that says what, and nothing written."""

from __future__ import annotations

import json

import pytest
import torch

import rsparse
from rsparse.sparse_model import state
from tests.cli.conftest import SIZE, bad
from tests.support.folders import dense_folder, snapshot

SPARSIFY = ["sparsify", "dense", "--calibration", "calibration", "-o", "new"]
EVAL = ["eval", "sparse", "--perplexity", "test.txt", "--seq-len", 24]
WITH_DATA = ["sparsify", "dense", "--sparsity", "0.5", *SIZE, "-o", "new", "--data"]
CALIBRATE = ["calibrate", "dense", *SIZE, "-o", "new", "--data"]


@pytest.fixture(autouse=True)
def _nothing_written(here):
    """The folder that a verb was to write is not there, not even in part."""
    yield
    assert not (here / "new").exists()
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("value", ["1.5", "1", "-0.1", "nan", "inf"])
def test_sparsity_out_of_range(value):
    bad("sparsity must be in [0, 1)", *SPARSIFY, f"--sparsity={value}")


@pytest.mark.parametrize("value", ["2", "-1", "nan"])
def test_rho_out_of_range(value):
    bad("rho", *SPARSIFY, "--sparsity", "0.5", f"--rho={value}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--sparsity", "half"], "half"),
        (["--sparsity", "0.5", "--method", "magic"], "'magic'"),
        (["--sparsity", "0.3", "--method", "cats"], "method cats is no recipe"),
        (["--sparsity", "0.3", "--method", "griffin+compensate"], "method griffin is no recipe"),
        (["--sparsity", "0.5", "--criterion", "taste"], "'taste'"),
        (["--sparsity", "0.5", "--grouping", "heap"], "'heap'"),
        (["--sparsity", "0.5", "--fit", "tight"], "'tight'"),
        (["--sparsity", "0.5", "--colour", "red"], "--colour"),
        (["--sparsity", "0.5", "--method", "sparse_only", "--rho", "0.5"], "'rho'"),
        (["--sparsity", "0.5", "--backend", "triton"], "triton"),
        (["--sparsity", "0.5", "--dtype", "int3"], "'int3'"),
        (["--sparsity", "0.5", "--device", "moon"], "'moon'"),
        (["--sparsity", "0.5", "--settle-tokens=-1"], "settle_tokens"),
        (["--sparsity", "0.5", "--data", "text.txt"], "--calibration"),
        ([], "--sparsity"),
    ],
)
def test_sparsify_options(options, says):
    bad(says, *SPARSIFY, *options)


def test_verbs(here):
    bad("'fly'", "fly")
    bad("VERB", *[])
    bad("MODEL", "sparsify", "--sparsity", "0.5", "-o", "new")
    bad("--out", "sparsify", "dense", "--sparsity", "0.5")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu():
    bad("cuda", *SPARSIFY, "--sparsity", "0.5", "--device", "cuda")


@pytest.mark.parametrize("verb", ["sparsify", "calibrate", "eval", "generate", "densify"])
def test_a_missing_model(verb):
    needed = {
        "sparsify": ["--sparsity", "0.5", "--calibration", "calibration", "-o", "new"],
        "calibrate": ["--data", "text.txt", "-o", "new"],
        "eval": ["--perplexity", "test.txt"],
        "generate": ["--prompt", "the"],
        "densify": ["-o", "new"],
    }[verb]
    bad("./nowhere", verb, "./nowhere", *needed)


def test_a_model_of_another_architecture(here):
    from transformers import AutoConfig

    AutoConfig.for_model("phi3").save_pretrained("phi")
    bad("fused", "sparsify", "phi", "--sparsity", "0.5", "--calibration", "calibration", "-o", "new")


TEXTS = {
    "missing.txt": (None, "does not exist"),
    "missing.jsonl": (None, "No such file"),
    "empty.txt": (b" \n", "no text"),
    "short.txt": (b"the river", "tokens"),
    "latin.txt": (b"caf\xe9 au lait", "UTF-8"),
    "bad.jsonl": (b'{"text": "the river"}\n{"txt": 3}\n', "line 2"),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("verb", ["calibrate", "sparsify", "eval"])
def test_text_that_is_not_there_or_too_short(here, verb, name):
    content, says = TEXTS[name]
    if content is not None:
        (here / name).write_bytes(content)
    bad(says, *{"calibrate": CALIBRATE, "sparsify": WITH_DATA, "eval": EVAL[:2] + EVAL[4:] + ["--perplexity"]}[verb], name)


@pytest.mark.parametrize("verb", [CALIBRATE, WITH_DATA])
def test_text_of_a_single_window(here, verb):
    (here / "one.txt").write_text("the river in her tower and the stone under bread")
    bad("needs two", *verb, "one.txt", "--seq-len", 20)


@pytest.mark.parametrize("options", [["--tokens", 10], ["--tokens=-5"], ["--seq-len", 1], ["--seq-len", 0], ["--rows", 0]])
def test_calibration_sizes_that_make_no_sense(options):
    bad("row" if "--rows" in options else "token" if "tokens" in options[0] else "seq", *CALIBRATE, "text.txt", *options)


def test_evaluation_sizes_that_make_no_sense():
    bad("--max-tokens", *EVAL, "--max-tokens", 3)
    bad("seq", *EVAL, "--seq-len", 0)
    bad("seq", *EVAL, "--seq-len", 1)


def test_evaluating_beyond_the_models_positions():
    bad("256", *EVAL, "--seq-len", 300)


def test_calibrating_beyond_the_models_positions():
    bad("256", *CALIBRATE, "text.txt", "--seq-len", 300)


@pytest.mark.parametrize(
    ("policy", "says"), [("sometimes", "'sometimes'"), ("last_fraction", "share"), ("last_fraction:2", "2"), ("all:0.5", "")]
)
def test_token_policies(policy, says):
    bad(says, *EVAL, "--token-policy", policy)
    bad(says, "generate", "sparse", "--prompt", "the", "--token-policy", policy)


def test_negative_sinks():
    bad("sink", *EVAL, "--sink-tokens=-1")


def test_recipes(here):
    recipe = state(rsparse.from_pretrained("sparse", device="cpu")[0]).recipe
    recipe.save("good.json")
    text = (here / "good.json").read_text()
    unit = "model.layers.0.mlp.up_proj"
    changed = json.loads(text)
    changed["units"][unit]["colour"] = "red"
    other = json.loads(text) | {"model_type": "qwen2"}
    larger = json.loads(text.replace("model.layers.1.", "model.layers.7."))
    for name, data in {"unit": changed, "other": other, "larger": larger, "newer": json.loads(text) | {"version": 9}}.items():
        (here / f"{name}.json").write_text(json.dumps(data))
    (here / "cut.json").write_text(text[: len(text) // 2])
    (here / "key.json").write_text(json.dumps(json.loads(text) | {"colour": "red"}))
    (here / "list.json").write_text("[]")
    for name, says in {
        "missing": "missing.json",
        "cut": "cut short",
        "key": "'colour'",
        "unit": "'colour'",
        "other": "qwen2",
        "larger": "model.layers.7",
        "newer": "version 9",
        "list": "object",
    }.items():
        bad(says, *SPARSIFY, "--recipe", f"{name}.json")
        if name not in ("other", "larger"):
            bad(says, "show", f"{name}.json")
    bad("--sparsity", *SPARSIFY, "--recipe", "good.json", "--sparsity", "0.5")


def test_calibrations(here):
    bad("calibration", "sparsify", "dense", "--sparsity", "0.5", "--calibration", "nowhere", "-o", "new")
    bad("calibration", "sparsify", "dense", "--sparsity", "0.5", "--calibration", "dense", "-o", "new")
    other = dense_folder(here / "other", "qwen2")
    bad("another model", "sparsify", other, "--sparsity", "0.5", "--calibration", "calibration", "-o", "new")


def test_a_sparse_model_where_a_dense_one_is_needed():
    bad("sparse already", "sparsify", "sparse", "--sparsity", "0.5", "--calibration", "calibration", "-o", "new")


def test_calibrating_a_sparse_model():
    bad("dense model", "calibrate", "sparse", "--data", "text.txt", *SIZE, "-o", "new")


def test_showing_a_dense_model():
    bad("dense is a dense model", "show", "dense")


def test_densify_of_a_dense_model():
    bad("dense already", "densify", "dense", "-o", "new")  # "sparsify it first" would send the user in a circle


def test_show_of_something_else(here):
    bad("nowhere", "show", "nowhere")
    bad("text.txt", "show", "text.txt")
    (here / "folder").mkdir()
    bad("folder", "show", "folder")
    bad("recipe", "show", "calibration", "--plot", "a.png")


def test_outputs_that_are_there(here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("all of it")
    (here / "file").write_text("text")
    before = snapshot(here / "mine")
    for verb in (
        [*SPARSIFY[:-1], "mine", "--sparsity", "0.5"],
        ["densify", "sparse", "-o", "mine"],
        [*CALIBRATE, "text.txt", "-o", "mine"],
    ):
        bad("--overwrite", *verb)
        bad("is a file", *["file" if word == "mine" else word for word in verb])
    assert snapshot(here / "mine") == before


def test_overwriting_keeps_the_old_folder_until_the_new_one_is_whole(here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("all of it")
    bad("neither a model nor", *SPARSIFY[:-1], "mine", "--overwrite", "--sparsity", "0.5")
    (here / "mine" / "config.json").write_text("{}")
    bad("rho", *SPARSIFY[:-1], "mine", "--overwrite", "--sparsity", "0.5", "--rho", "2")
    bad("does not exist", *EVAL[:3], "missing.txt", "--json", "mine/eval.json")
    assert snapshot(here / "mine") == {"thesis.tex": b"all of it", "config.json": b"{}"}


@pytest.mark.parametrize(
    "verb", [[*SPARSIFY[:-2], "--sparsity", "0.5"], ["densify", "sparse"], [*CALIBRATE, "text.txt"]], ids=lambda verb: verb[0]
)
def test_unwritable_outputs(here, monkeypatch, verb):
    """Found before the work, not after hours of it."""
    (here / "file").write_text("text")
    monkeypatch.setattr(
        "rsparse.checkpoint.from_pretrained", lambda *arguments, **options: pytest.fail("worked before it checked")
    )
    bad("file", *verb, "-o", "file/new")


def test_an_output_where_no_folder_can_be_made():
    bad("/proc", "densify", "sparse", "-o", "/proc/rsparse-test")


def test_unwritable_records(here):
    (here / "file").write_text("text")
    bad("folder", *EVAL, "--json", "sparse")
    bad("folder", *SPARSIFY, "--sparsity", "0.5", "--json", "sparse")
    bad("folder", "generate", "sparse", "--prompt", "the", "--json", "sparse")


def test_a_record_without_a_folder(here, monkeypatch):
    (here / "file").write_text("text")
    monkeypatch.setattr(
        "rsparse.checkpoint.from_pretrained", lambda *arguments, **options: pytest.fail("worked before it checked")
    )
    bad("file", *EVAL, "--json", "file/eval.json")


@pytest.mark.parametrize("plot", ["file/recipe.png", "recipe.docx", "sparse"])
def test_unwritable_plots(here, plot):
    (here / "file").write_text("text")
    bad(plot, "show", "sparse", "--plot", plot)


def test_wikitext_join_is_for_text(here):
    (here / "lines.jsonl").write_text('{"text": "the river"}\n')
    bad("--wikitext-join", "eval", "sparse", "--perplexity", "lines.jsonl", "--wikitext-join")
