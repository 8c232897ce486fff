"""TEAL: levels by its greedy, against the loop written out, and where the answer is known beforehand."""

from __future__ import annotations

import pytest
import torch

from rsparse import make_recipe
from rsparse.calibration.histogram import channel_histogram, kept_share
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from rsparse.methods import _greedy, _probe
from rsparse.methods._probe import threshold_curve
from tests.methods.greedy_reference import block_total, reference_levels, spread, untouched
from tests.support.models import tiny_model
from tests.support.recipes import SEQ_LEN, calibration_of

TOKENS = 8 * SEQ_LEN


def levels_of(recipe, block=0):
    return {name: unit.sparsity for name, unit in recipe.units.items() if f".layers.{block}." in name}


def short(levels):
    return {name.rpartition(".")[2]: level for name, level in levels.items()}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text"])
@pytest.mark.parametrize("block", [0, 1])
def test_exhaustive_is_the_papers_loop(model_type, block):
    model, calibration = tiny_model(model_type, dtype=torch.float64), calibration_of(model_type)
    recipe = make_recipe(model, "teal", 0.43, calibration=calibration, tokens=TOKENS, exhaustive=True)
    expected = reference_levels(model, calibration, 0.43, "magnitude", spread(calibration.windows, 8), block)
    found = levels_of(recipe, block)
    assert found == pytest.approx(expected, abs=1e-9)
    assert len({round(level, 6) for level in found.values()}) > 3  # far from uniform, or the test shows nothing


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_lazy_is_close_to_exhaustive(model_type):
    model, calibration = tiny_model(model_type), calibration_of(model_type)
    lazy, full = (
        make_recipe(model, "teal", 0.5, calibration=calibration, tokens=TOKENS, exhaustive=exhaustive)
        for exhaustive in (False, True)
    )
    sizes = {name: unit.size for name, unit in full.units.items()}

    def distance(levels):
        return sum(abs(levels[name] - full.units[name].sparsity) * size for name, size in sizes.items()) / sum(sizes.values())

    moved = distance({name: unit.sparsity for name, unit in lazy.units.items()})
    assert moved < 0.06
    assert moved < 0.3 * distance(dict.fromkeys(sizes, 0.5))


def test_lazy_runs_fewer_candidates(monkeypatch):
    runs = []
    squared_error = _probe.BlockProbe.squared_error
    monkeypatch.setattr(_probe.BlockProbe, "squared_error", lambda *args: runs.append(args[1:]) or squared_error(*args))
    model, calibration = tiny_model("llama"), calibration_of("llama")
    make_recipe(model, "teal", 0.5, calibration=calibration, tokens=TOKENS)
    lazy = len(runs)
    make_recipe(model, "teal", 0.5, calibration=calibration, tokens=TOKENS, exhaustive=True)
    assert lazy < 0.6 * (len(runs) - lazy)


def test_what_does_not_matter_is_dropped_first():
    """Behind a zero o_proj attention does nothing: its 6912 of 18432 weights go to the cap before the MLP is touched."""
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    calibration = calibration_of("llama")
    for block in (0, 1):
        # 0.3 · 18432 = 5529.6 < 0.95 · 6912: the MLP stays dense
        levels = short(levels_of(make_recipe(model, "teal", 0.3, calibration=calibration, tokens=TOKENS), block))
        assert [levels[name] for name in ("gate_proj", "up_proj", "down_proj")] == [0, 0, 0]
        # beyond it, attention is at the cap and the MLP has the rest
        levels = short(levels_of(make_recipe(model, "teal", 0.5, calibration=calibration, tokens=TOKENS), block))
        assert [levels[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj")] == pytest.approx([0.95] * 4)
        rest = (0.5 * 18432 - 0.95 * 6912) / 3840
        assert levels["gate_proj"] + levels["up_proj"] + levels["down_proj"] == pytest.approx(rest)


def test_steps_are_inverse_to_size():
    """One step of 0.05 of q_proj's 2304 weights: 0.1 of k and v, 0.03 of the MLP's; then what is left."""
    model, calibration = tiny_model("llama"), calibration_of("llama")
    share = 0.05 * 2304 / 18432
    one = short(levels_of(make_recipe(model, "teal", share, calibration=calibration, tokens=TOKENS)))
    step = {"q_proj": 0.05, "o_proj": 0.05, "k_proj": 0.1, "v_proj": 0.1, "gate_proj": 0.03, "up_proj": 0.03, "down_proj": 0.03}
    (raised,) = [name for name, level in one.items() if level]
    assert one[raised] == pytest.approx(step[raised])
    half = short(levels_of(make_recipe(model, "teal", share / 2, calibration=calibration, tokens=TOKENS)))
    (raised,) = [name for name, level in half.items() if level]
    assert half[raised] == pytest.approx(step[raised] / 2)


@pytest.mark.parametrize("grouping", ["linear", "group"])
@pytest.mark.parametrize(("sparsity", "step"), [(0.5, 0.05), (0.37, 0.2), (0.95, 0.5), (0.0, 0.05)])
def test_each_block_has_the_total(grouping, sparsity, step):
    model, calibration = tiny_model("llama"), calibration_of("llama")
    options = {"calibration": calibration, "grouping": grouping, "step": step, "tokens": SEQ_LEN}
    recipe = make_recipe(model, "teal", sparsity, **options)
    assert (recipe.method, recipe.grouping, len(recipe.units)) == ("teal", grouping, 8 if grouping == "group" else 14)
    assert [block_total(recipe, block) for block in (0, 1)] == pytest.approx([sparsity] * 2, abs=1e-9)
    assert {(unit.criterion, unit.rho, unit.rank, unit.threshold) for unit in recipe.units.values()} == {
        ("magnitude", 1.0, 0, None)
    }
    assert all(0 <= unit.sparsity <= 0.95 + 1e-9 for unit in recipe.units.values())
    assert recipe == make_recipe(model, "teal", sparsity, **options)  # the same each time


def test_uniform_needs_no_calibration():
    model = tiny_model("llama")
    for grouping in ("linear", "group"):
        recipe = make_recipe(model, "teal", 0.5, allocation="uniform", grouping=grouping)
        assert recipe.method == "teal"
        assert recipe.units == make_recipe(model, "sparse_only", 0.5, grouping=grouping).units


def test_the_model_is_left_as_it_was(monkeypatch):
    model, calibration = tiny_model("llama"), calibration_of("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = make_recipe(model, "teal", 0.4, calibration=calibration, tokens=SEQ_LEN)
    untouched(model, before)

    def fails(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_greedy, "_smallest", fails)
    with pytest.raises(KeyboardInterrupt):
        make_recipe(model, "teal", 0.4, calibration=calibration, tokens=SEQ_LEN)
    untouched(model, before)
    sparsify(model, recipe, calibration)
    assert model.rsparse.recipe.settled
    with pytest.raises(RSparseError, match="teal needs the dense model"):
        make_recipe(model, "teal", 0.4, calibration=calibration)


def test_a_shadowed_forward_is_put_back():
    """accelerate's hooks set `forward` on the instance, too."""
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = mine = mlp.forward
    make_recipe(model, "teal", 0.2, calibration=calibration_of("llama"), tokens=SEQ_LEN)
    assert vars(mlp)["forward"] is mine


@pytest.mark.parametrize("scaled", [False, True])
def test_threshold_curve_is_the_histograms(scaled):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 40, generator=generator) * torch.exp(torch.randn(40, generator=generator))
    c = torch.exp(torch.randn(40, generator=generator)) if scaled else None
    histogram = channel_histogram(x)
    dropped, thresholds = threshold_curve(histogram, c)
    for share, t in zip(dropped, thresholds, strict=True):
        assert 1 - kept_share(histogram, c, float(t)) == pytest.approx(share, abs=1e-5)
    unit = _probe.ProbedUnit("unit", {}, 0, c, (dropped, thresholds))
    score = x.abs() if c is None else x.abs() * c
    for level in (0.05, 0.3, 0.5, 0.9):
        assert float((score <= unit.threshold(level)).float().mean()) == pytest.approx(level, abs=0.004)


def test_a_column_of_zeros_has_no_score():
    histogram = channel_histogram(torch.ones(10, 4))
    dropped, thresholds = threshold_curve(histogram, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert dropped[-1] == pytest.approx(1)
    assert (thresholds[1:] > thresholds[:-1]).all()


@pytest.mark.parametrize(
    ("sparsity", "options", "says"),
    [
        (0.5, {"calibration": None}, "method teal needs a calibration"),
        (0.5, {"allocation": "magic"}, "allocation must be one of greedy, uniform, got 'magic'"),
        (0.5, {"grouping": "heap"}, "grouping must be one of linear, group, got 'heap'"),
        (0.5, {"step": 0.0}, r"step must be in \(0, 1\], got 0.0"),
        (0.5, {"step": float("nan")}, "step must be"),
        (0.5, {"step": "wide"}, "method teal: step must be a number, got 'wide'"),
        (0.5, {"tokens": 0}, "tokens must be at least 1, got 0"),
        (0.5, {"tokens": "2.5"}, "method teal: tokens must be a whole number, got '2.5'"),
        (0.5, {"exhaustive": "perhaps"}, "exhaustive must be true or false, got 'perhaps'"),
        (0.96, {}, "ends at sparsity 0.95, got 0.96"),
        (0.5, {"calibration": "qwen2"}, "is of another model"),
    ],
)
def test_refusals(sparsity, options, says):
    of = options.get("calibration", "llama")
    options = options | {"calibration": of and calibration_of(of)}
    with pytest.raises(RSparseError, match=says) as caught:
        make_recipe(tiny_model("llama"), "teal", sparsity, **options)
    assert "\n" not in str(caught.value)


def test_options_as_strings():
    model, calibration = tiny_model("llama"), calibration_of("llama")
    as_strings = {"step": "0.2", "tokens": str(SEQ_LEN), "exhaustive": "Yes", "grouping": "group"}
    typed = {"step": 0.2, "tokens": SEQ_LEN, "exhaustive": True, "grouping": "group"}
    assert make_recipe(model, "teal", 0.3, calibration=calibration, **as_strings) == make_recipe(
        model, "teal", 0.3, calibration=calibration, **typed
    )
