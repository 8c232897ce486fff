"""The user's path, verb by verb: calibrate, sparsify, eval, show, densify, env."""

from __future__ import annotations

import json
import math

import pytest
import torch

import rsparse
from rsparse.methods import makes_recipe, names
from rsparse.sparse_model import is_sparse, state
from tests.cli.conftest import SIZE, good
from tests.support.folders import config_of, snapshot, tensors_of
from tests.support.models import tiny_model, token_ids

IDS = token_ids(1, 12)


@torch.no_grad()
def logits(folder):
    return rsparse.from_pretrained(folder, device="cpu")[0](IDS).logits


def record(path):
    found = json.loads(path.read_text())
    assert sorted(found) == ["config", "env", "metrics", "run", "schema"]
    assert found["schema"] == 1
    assert sorted(found["run"]) == ["command", "commit", "date", "seconds"]
    return found


def test_calibrate(made):
    calibration = rsparse.Calibration.load(made / "calibration")
    assert calibration.meta.tokens == calibration.windows.numel() == 768
    assert (calibration.meta.rows, calibration.meta.seq_len) == (200, 24)
    assert calibration.meta.model_type == "llama"


def test_sparsify_writes_the_checkpoint_that_was_asked_for(made):
    model = rsparse.from_pretrained(made / "sparse", device="cpu")[0]
    recipe = state(model).recipe
    assert (recipe.method, recipe.sparsity, recipe.settled) == ("rsparse", pytest.approx(0.5), True)
    assert {unit.rho for unit in recipe.units.values()} == {0.6}
    assert any(unit.rank for unit in recipe.units.values())
    found = record(made / "sparsify.json")
    assert found["config"]["method"] == "rsparse"
    assert found["config"]["sparsity"] == pytest.approx(0.5)
    assert found["config"]["recipe_sha"] == recipe.sha()
    assert found["metrics"]["achieved_sparsity"] == pytest.approx(0.5, abs=0.05)  # on the few tokens of the check


@pytest.mark.parametrize("method", [name for name in names() if makes_recipe(name)])
def test_sparsify_by_every_method(here, method):
    small = ":population=2,generations=2,samples=2" if method == "searched" else ""
    outcome = good(
        "sparsify", "dense", "--method", method + small, "--sparsity", 0.4, "--calibration", "calibration", "-o", "new"
    )
    assert "new" in outcome.err
    model = rsparse.from_pretrained("new", device="cpu")[0]
    recipe = state(model).recipe
    assert recipe.method == method
    assert recipe.sparsity == pytest.approx(0 if method == "dense" else 0.4)
    assert torch.equal(logits("new"), logits("dense")) == (method == "dense")


def test_sparsify_options_reach_the_recipe(here):
    options = ["--rho", 0.7, "--criterion", "residual_norm", "--grouping", "group", "--fit", "svd"]
    good("sparsify", "dense", "--sparsity", 0.3, *options, "--calibration", "calibration", "-o", "new", "--no-check")
    recipe = state(rsparse.from_pretrained("new", device="cpu")[0]).recipe
    assert (recipe.grouping, recipe.fit) == ("group", "svd")
    assert {(unit.sparsity, unit.rho, unit.criterion) for unit in recipe.units.values()} == {(0.3, 0.7, "residual_norm")}


def test_sparsify_by_a_recipe_file(here):
    recipe = state(rsparse.from_pretrained("sparse", device="cpu")[0]).recipe
    recipe.save("recipe.json")
    good("sparsify", "dense", "--recipe", "recipe.json", "--calibration", "calibration", "-o", "new")
    assert torch.equal(logits("new"), logits("sparse"))


def test_sparsify_calibrates_on_data(here):
    good("sparsify", "dense", "--sparsity", 0.5, "--rho", 0.6, "--data", "text.txt", *SIZE, "-o", "new")
    assert torch.equal(logits("new"), logits("sparse"))
    (here / "lines.jsonl").write_text(json.dumps({"text": (here / "text.txt").read_text()}) + "\n")
    good("sparsify", "dense", "--sparsity", 0.5, "--rho", 0.6, "--data", "lines.jsonl", *SIZE, "-o", "new", "--overwrite")
    assert torch.equal(logits("new"), logits("sparse"))


@pytest.mark.parametrize("policy", ["all", "decode", "last_fraction:0.5", "dense"])
def test_eval(here, policy):
    outcome = good(
        "eval", "sparse", "--perplexity", "test.txt", "--seq-len", 24, "--max-tokens", 240,
        "--token-policy", policy, "--sink-tokens", 2, "--json", "eval.json",
    )  # fmt: skip
    found = record(here / "eval.json")
    config, metrics = found["config"], found["metrics"]
    assert config["model"] == "sparse"
    assert config["data"] == "test.txt"
    assert config["token_policy"] == policy
    assert (config["sink_tokens"], config["seq_len"], config["dtype"]) == (2, 24, "float32")
    for name in ("weights_sha", "method", "grouping", "criterion", "recipe_sha", "calibration", "rank_share"):
        assert config[name], name
    rows = {"all": 22 / 24, "decode": 12 / 24, "last_fraction:0.5": 12 / 24, "dense": 0}[policy]
    assert metrics["sparse_row_share"] == pytest.approx(rows)
    assert metrics["tokens"] == 10 * (12 if policy == "decode" else 23)
    assert len(metrics["window_nll"]) == 10
    assert metrics["perplexity"] == pytest.approx(math.exp(sum(metrics["window_nll"]) / 10), rel=1e-4)
    assert 0 < metrics["bytes_per_token"] <= metrics["dense_bytes_per_token"]
    assert (metrics["kl_to_dense"] > 0) == (policy != "dense")
    assert (metrics["perplexity"] == metrics["dense_perplexity"]) == (policy == "dense")
    assert f"{metrics['perplexity']:.3f}" in outcome.out


def test_eval_of_a_dense_model(here):
    good("eval", "dense", "--perplexity", "test.txt", "--seq-len", 24, "--max-tokens", 240, "--json", "dense.json")
    good("eval", "sparse", "--perplexity", "test.txt", "--seq-len", 24, "--max-tokens", 240, "--json", "sparse.json")
    dense, sparse = record(here / "dense.json"), record(here / "sparse.json")
    assert dense["config"]["method"] == "dense"
    assert dense["config"]["weights_sha"] == sparse["config"]["weights_sha"]
    assert dense["metrics"]["perplexity"] == pytest.approx(sparse["metrics"]["dense_perplexity"], rel=1e-6)
    assert dense["metrics"]["achieved_sparsity"] == 0
    assert dense["metrics"]["bytes_per_token"] == sparse["metrics"]["dense_bytes_per_token"]
    assert "kl_to_dense" not in dense["metrics"]


@pytest.mark.parametrize("asked", ["auto", "reference"])
def test_records_name_the_backend_that_ran(here, asked):
    good("eval", "sparse", "--perplexity", "test.txt", "--seq-len", 24, "--backend", asked, "--json", "eval.json")
    assert record(here / "eval.json")["env"]["backend"] == "reference"
    good("eval", "dense", "--perplexity", "test.txt", "--seq-len", 24, "--json", "eval.json")
    assert record(here / "eval.json")["env"]["backend"] == "dense"


def test_eval_without_the_comparison(here):
    good("eval", "sparse", "--perplexity", "test.txt", "--seq-len", 24, "--no-dense", "--json", "eval.json")
    metrics = record(here / "eval.json")["metrics"]
    assert "kl_to_dense" not in metrics
    assert "dense_perplexity" not in metrics


def test_densify(here):
    good("densify", "sparse", "-o", "back")
    assert not is_sparse(rsparse.from_pretrained("back", device="cpu")[0])
    assert torch.equal(logits("back"), logits("dense"))
    assert "quantization_config" not in config_of(here / "back")
    expected = tiny_model("llama").state_dict()
    found = tensors_of(here / "back")["model.safetensors"]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert good("generate", "back", "--prompt", "the river", "--max-new-tokens", 2).code == 0


def test_show(here):
    model = rsparse.from_pretrained("sparse", device="cpu")[0]
    state(model).recipe.save("recipe.json")
    kinds = good("show", "sparse").out
    assert good("show", "recipe.json").out == kinds
    assert "asked sparsity 0.5000 over 14 units" in kinds
    assert len([line for line in kinds.splitlines() if "_proj" in line]) == 7
    units = good("show", "sparse", "--units").out
    assert len([line for line in units.splitlines() if "_proj" in line]) == 14
    assert "text.txt" in good("show", "calibration").out
    outcome = good("show", "sparse", "--plot", "deep/recipe.png")
    assert "deep/recipe.png" in outcome.out
    assert (here / "deep" / "recipe.png").read_bytes().startswith(b"\x89PNG")


def test_env(here):
    assert "reference" in good("env").out
    found = json.loads(good("env", "--json").out)
    assert found["backends"]["reference"] == "available"
    assert found["rsparse"] == rsparse.__version__
    assert found["torch"] == torch.__version__


def test_overwrite_replaces_a_whole_folder(here):
    (here / "new").mkdir()
    (here / "new" / "stale").write_text("old")
    (here / "new" / "config.json").write_text("{}")
    good("densify", "sparse", "-o", "new", "--overwrite")
    assert "stale" not in snapshot(here / "new")
    assert logits("new").isfinite().all()
