"""Sweeps: points of one model on one text."""

from __future__ import annotations

import math

import matplotlib.image
import pytest

from rsparse import sparsify
from rsparse.analysis.points import Points
from rsparse.analysis.sweep import Sweep, apply_recipe, method_of, rho_method
from rsparse.analysis.sweep_views import plot_policies, plot_rho, plot_sparsity, policy_lines, rho_lines, sparsity_lines
from rsparse.errors import RSparseError
from rsparse.evaluation.perplexity import evaluate
from rsparse.methods import MethodSpec
from rsparse.sparse_model import is_sparse
from rsparse.token_policy import TokenPolicy
from tests.support.folders import sparse_model
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import calibration_of, uniform

IDS = token_ids(4, 20)


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tiny_model("llama"), IDS, Points(tmp_path / "points", {}))


def test_a_point_is_what_evaluation_says(sweep):
    found = sweep.method(MethodSpec("sparse_only"), 0.5, calibration_of("llama"))
    assert not is_sparse(sweep.model)
    model = sparsify(tiny_model("llama"), uniform(sweep.model, 0.5), calibration_of("llama"))
    expected = evaluate(model, IDS)
    for name in ("perplexity", "kl_to_dense", "achieved_sparsity", "bytes_per_token"):
        assert found[name] == pytest.approx(getattr(expected, name), rel=1e-5)
    assert (found["method"], found["sparsity"]) == ("sparse_only", 0.5)
    assert sweep.dense()["perplexity"] == pytest.approx(expected.dense_perplexity, rel=1e-6)


def test_rho_is_what_it_says(sweep):
    points = {
        rho: sweep.method(rho_method(rho, "paper", "svd", "linear"), 0.5, calibration_of("llama")) for rho in (0.0, 0.6, 1.0)
    }
    assert [point["rho"] for point in points.values()] == [[0.0], [0.6], [1.0]]
    assert [point["criterion"] for point in points.values()] == [["paper"]] * 3
    assert points[0.0]["rank_share"] > 0.7 > points[0.6]["rank_share"] > points[1.0]["rank_share"] == 0
    assert points[1.0]["achieved_sparsity"] == pytest.approx(0.5, abs=0.02)


def test_a_killed_sweep_goes_on(sweep, monkeypatch):
    sweep.method(MethodSpec("sparse_only"), 0.3, calibration_of("llama"))

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("rsparse.analysis.sweep.evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        sweep.method(MethodSpec("sparse_only"), 0.5, calibration_of("llama"))
    assert not is_sparse(sweep.model)
    again = Sweep(sweep.model, IDS, Points(sweep.points.folder, {}))
    assert again.method(MethodSpec("sparse_only"), 0.3, calibration_of("llama"))["sparsity"] == 0.3
    assert sorted(path.name for path in sweep.points.folder.iterdir()) == ["settings.json", "sparse_only-s0.3.json"]


def test_policies_of_one_sparse_model(tmp_path):
    model = sparse_model("llama")
    sweep = Sweep(model, IDS, Points(tmp_path, {}))
    policy = TokenPolicy("last_fraction", 0.25)
    found, every = sweep.under(policy), sweep.under(TokenPolicy("all"))
    expected = evaluate(model, IDS, policy)
    assert found["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)
    assert found["dense_perplexity"] == pytest.approx(expected.dense_perplexity, rel=1e-6)
    assert (found["sparse_row_share"], every["sparse_row_share"]) == (0.25, 0.95)
    with pytest.raises(RSparseError, match="is sparse"):
        sweep.dense()


def test_a_recipe_makes_the_model_sparse_once():
    model = tiny_model("llama")
    recipe = uniform(model, 0.5)
    apply_recipe(model, recipe, calibration_of("llama"), 480, 0)
    assert is_sparse(model)
    with pytest.raises(RSparseError, match="sparse already"):
        apply_recipe(model, recipe, calibration_of("llama"), 480, 0)


def test_methods_that_a_sweep_takes():
    assert method_of("rsparse:rho=0.9").label == "rsparse-rho0.9"
    for text, says in (("dense", "measured anyway"), ("teal+compensate", "bench quality"), ("magic", "unknown")):
        with pytest.raises(RSparseError, match=says):
            method_of(text)


def test_a_single_window_is_too_little(tmp_path):
    with pytest.raises(RSparseError, match="two or more"):
        Sweep(tiny_model("llama"), IDS[:1], Points(tmp_path, {}))


def point(nll, **more):
    """nll: by window"""
    perplexity = math.exp(sum(nll) / len(nll))
    return {"perplexity": perplexity, "window_nll": nll, "kl_to_dense": 0.1, "achieved_sparsity": 0.5, **more}


LOW, MIDDLE, HIGH, NOISY = [2.0, 2.1, 2.0], [2.2, 2.3, 2.2], [2.6, 2.7, 2.6], [1.2, 3.3, 2.2]
DENSE = point([1.9, 2.0, 1.9])


@pytest.mark.parametrize(("mix", "says"), [(LOW, "holds"), (HIGH, "does not hold"), (NOISY, "cannot be told")])
def test_rho_verdict(mix, says):
    points = {0.0: point(HIGH), 0.5: point(mix), 1.0: point(MIDDLE)}
    assert f": {says} here (rho 0.5 over 1: " in rho_lines(points, DENSE, 0.5)[1]
    assert len(rho_lines({0.0: point(HIGH)}, DENSE, 0.5)) == 1


def test_sparsity_verdict():
    rows = {"sparse_only": {0.3: point(LOW), 0.5: point(MIDDLE)}, "rsparse-rho0.9": {0.3: point(LOW), 0.5: point(HIGH)}}
    text = sparsity_lines(rows, DENSE)
    assert text[0].startswith("sparse_only: 30% 7.64, 50% 9.33 (dense 6.91, within 1.25x up to 30%)")
    assert "R-Sparse beats sparse-only at 50%: does not hold here (rsparse-rho0.9 over sparse_only" in text[2]
    assert len(sparsity_lines({"teal": rows["sparse_only"]}, DENSE)) == 1


def test_policy_verdict():
    points = {
        "all": point([math.log(2.0)] * 2, dense_perplexity=1.0, sparse_row_share=1.0),
        "last_fraction:0.1": point([math.log(2.0) * 0.1] * 2, dense_perplexity=1.0, sparse_row_share=0.1),
    }
    text = policy_lines(points)
    assert "all 2.000x (100% of rows)" in text[0]
    assert "last_fraction:0.1 hides most of the loss: holds here (it shows 10%" in text[1]
    assert "cannot be told" in policy_lines({name: each | {"perplexity": 0.9} for name, each in points.items()})[1]
    points["last_fraction:0.1"] |= point([math.log(1.9)] * 2)
    assert "does not hold" in policy_lines(points)[1]


def test_pictures(tmp_path):
    rows = {0.3: point(LOW), 0.5: point(MIDDLE)}
    plot_rho(rows, DENSE, "title", tmp_path / "a.png")
    plot_sparsity({"a": rows, "b": rows}, DENSE, "title", tmp_path / "b.png")
    plot_policies({"all": point(LOW, dense_perplexity=6.0, sparse_row_share=1.0)}, "title", tmp_path / "c.png")
    for name in "abc":
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05
