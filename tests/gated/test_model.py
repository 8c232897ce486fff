"""Installed in a model: settled under upstream sparsity, counted, refused where they must be, and taken out again."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from rsparse import make_recipe, save_pretrained, sparsify
from rsparse.bytes_read import bytes_per_token, dense_bytes_per_token
from rsparse.calibration.windows import spread
from rsparse.compensation import FitSettings, compensate
from rsparse.errors import RSparseError
from rsparse.evaluation.check import quick_check
from rsparse.evaluation.describe import backend, sparse_config
from rsparse.gated import GatedPlan
from rsparse.gated.mlp import GatedMLP
from rsparse.gated.model import GatedState
from rsparse.meter import SparsityMeter
from rsparse.models import supported_model_types
from rsparse.models.stepper import BlockStepper
from rsparse.settle import settle
from rsparse.sparse_model import achieved_sparsity, densify, is_sparse, measuring, recipe_state, set_backend, state
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import SEQ_LEN, calibration_of
from tests.support.tolerance import assert_close_rms

MLPS = ["model.layers.0.mlp", "model.layers.1.mlp"]
METHODS = {"cats": 0.3, "griffin": 0.4, "dejavu": 0.5, "relufication": 0.3}


def made(method="cats", sparsity=None, model_type="llama", dtype=torch.float32, **options):
    model = tiny_model(model_type, dtype=dtype)
    plan = make_recipe(model, method, METHODS[method] if sparsity is None else sparsity, **options)
    return sparsify(model, plan, calibration_of(model_type), settle_tokens=1 << 20)


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


@torch.no_grad()
def cats_by_hooks(model, thresholds, ids):
    """A second implementation: what goes into down is masked by |act(gate x)|. The first token is dense."""
    gates, handles = {}, []
    for name, threshold in thresholds.items():
        mlp = model.get_submodule(name)

        def keep(module, args, output, name=name):
            gates[name] = F.silu(output)

        def mask(module, args, name=name, threshold=threshold):
            kept = gates[name].abs() > threshold
            kept[:, :1] = True
            return (args[0] * kept,)

        handles += [mlp.gate_proj.register_forward_hook(keep), mlp.down_proj.register_forward_pre_hook(mask)]
    try:
        return model(ids).logits, gates
    finally:
        for handle in handles:
            handle.remove()


def test_thresholds_are_solved_under_upstream_sparsity():
    """In the second block they are quantiles of what comes there once the first is sparse, not in the dense model."""
    model, calibration = made("cats", dtype=torch.float64), calibration_of("llama")
    thresholds = dict(state(model).plan.thresholds)
    assert list(thresholds) == MLPS
    dense = tiny_model("llama", dtype=torch.float64)
    found, gates = cats_by_hooks(dense, thresholds, calibration.windows)
    assert_close_rms(logits(model, calibration.windows), found, torch.float64)
    share = 1 - 0.3 * 18432 / 7680
    for name in MLPS:
        assert float((gates[name][:, 1:].abs() > thresholds[name]).double().mean()) == pytest.approx(share, abs=3e-4)
    _, apart = cats_by_hooks(dense, dict.fromkeys(MLPS, -1.0), calibration.windows)
    alone = float((apart[MLPS[1]][:, 1:].abs() > thresholds[MLPS[1]]).double().mean())
    assert abs(alone - share) > 2e-3


def test_settling_takes_windows_from_all_over_the_text():
    calibration = calibration_of("llama")
    model = tiny_model("llama")
    plan = make_recipe(model, "cats", 0.3)
    seen, entered = [], []
    with pytest.MonkeyPatch.context() as patch:
        settle, enter = GatedMLP.settle, BlockStepper.enter
        patch.setattr(GatedMLP, "settle", lambda self, rows: seen.append(rows.shape) or settle(self, rows))
        patch.setattr(BlockStepper, "enter", lambda self, ids: entered.append(ids) or enter(self, ids))
        sparsify(model, plan, calibration, settle_tokens=3 * SEQ_LEN + 5)
    assert seen == [(3, SEQ_LEN - 1, 48)] * 2  # without the sink
    assert torch.equal(entered[0], calibration.windows[[0, 32, 63]])
    assert torch.equal(spread(calibration.windows, 3), calibration.windows[[0, 32, 63]])
    assert torch.equal(spread(calibration.windows, 0), calibration.windows[:1])
    assert torch.equal(spread(calibration.windows, 1000), calibration.windows)


def test_a_settled_plan_needs_no_calibration():
    model = made("cats")
    plan, expected = state(model).plan, logits(model, token_ids(2, 9))
    assert plan.calibration == calibration_of("llama").meta.label
    again = sparsify(tiny_model("llama"), GatedPlan.from_dict(plan.to_dict()))
    assert torch.equal(logits(again, token_ids(2, 9)), expected)


@pytest.mark.parametrize("model_type", supported_model_types())
@pytest.mark.parametrize("method", METHODS)
def test_every_architecture_and_back(method, model_type):
    original, ids = tiny_model(model_type), token_ids(3, 9)
    model = made(method, model_type=model_type)
    with state(model).policy.using(TokenPolicy("last_fraction", 0.5)):
        found = logits(model, ids)
    assert torch.equal(found[:, :4], logits(original, ids)[:, :4])
    assert not torch.equal(found[:, 4:], logits(original, ids)[:, 4:])
    assert list(model.state_dict()) == list(original.state_dict())
    assert densify(model) is model
    assert not is_sparse(model)
    assert torch.equal(logits(model, ids), logits(original, ids))
    assert {type(module) for module in model.modules()} == {type(module) for module in original.modules()}


def test_mode_and_dtype_are_the_models():
    model = made("cats").train().to(torch.bfloat16)
    densify(model)
    assert model.model.layers[0].mlp.training
    assert model.model.layers[0].mlp.gate_proj.weight.dtype == torch.bfloat16


# ---- counted


@pytest.mark.parametrize(
    ("method", "sparsity", "spared"),
    [("cats", 0.3, 2 * 3840), ("relufication", 0.35, 2 * 3840), ("griffin", 0.4, 3 * 3840), ("dejavu", 0.3, 3 * 3840)],
)
def test_what_a_dropped_neuron_saves(method, sparsity, spared):
    """All linears of a block hold 18432 weights; half of the neurons and a quarter of the heads kept, by hand."""
    model = made(method, sparsity)
    meter = SparsityMeter()
    for name in MLPS:
        meter.add(name, torch.tensor([[30, 50]]), 80, None, 2)
    expected = 0.5 * spared / 18432
    if method == "dejavu":
        for name in MLPS:
            meter.add(name.replace("mlp", "self_attn"), torch.tensor([[1, 1]]), 4, None, 2)
        expected += 0.75 * 2 * 2304 / 18432  # q and o; k and v are read
    found, by_unit = achieved_sparsity(model, meter)
    assert found == pytest.approx(expected)
    assert by_unit[MLPS[0]] == pytest.approx(0.5 * spared / 11520)
    assert dense_bytes_per_token(model) - bytes_per_token(model, by_unit) == round(expected * 2 * 18432 * 4)


def test_multi_phase_reads_everything():
    model = made("relufication", 0.1, phases=2)
    with measuring(model) as meter:
        logits(model, token_ids(2, SEQ_LEN))
    total, by_unit = achieved_sparsity(model, meter)
    assert (total, bytes_per_token(model, by_unit)) == (0, dense_bytes_per_token(model))
    # The asked level is the share of down that is changed: 0.1 of 18432, of 3840.
    assert meter.kept_share(MLPS[0]) == pytest.approx(1 - 0.48, abs=0.1)


def test_records():
    model = made("dejavu", 0.5)
    config = sparse_config(model)
    assert {name: config[name] for name in ("method", "sparsity", "rule", "kept_neurons", "kept_heads", "calibration")} == {
        "method": "dejavu", "sparsity": 0.5, "rule": "oracle", "kept_neurons": 0.4, "kept_heads": 2, "calibration": "",
    }  # fmt: skip
    assert config["recipe_sha"] == state(model).plan.sha()
    assert state(model).levels() == {"neurons": 0.6, "heads": 0.5}
    assert (state(model).method, backend(model)) == ("dejavu", "reference")
    phases = sparse_config(made("relufication", 0.1, phases=2))
    assert (phases["rule"], phases["phases"]) == ("multi_phase", 2)


def test_sparsity_zero_leaves_the_modules():
    model = made("cats", 0.0)
    assert is_sparse(model)
    assert not any(isinstance(module, GatedMLP) for module in model.modules())
    with measuring(model) as meter:
        logits(model, token_ids(2, 9))
    assert achieved_sparsity(model, meter) == (0.0, {})


# ---- refused


@pytest.mark.parametrize(
    "use",
    [
        lambda model, folder: save_pretrained(model, folder / "out"),
        lambda model, folder: compensate(
            model, calibration_of("llama").windows, calibration_of("llama").heldout, FitSettings.parse({}, "cpu"),
            sink_tokens=1, label="",
        ),
        lambda model, folder: settle(model, calibration_of("llama").windows, 1),
        lambda model, folder: set_backend(model, "reference"),
        lambda model, folder: recipe_state(model),
    ],
)  # fmt: skip
def test_what_takes_a_recipe(use, tmp_path):
    model = made("cats")
    expected = logits(model, token_ids(2, 9))
    says = "^this model was made by cats, which is no recipe for its linears: it can be evaluated and can generate text, but "
    with pytest.raises(RSparseError, match=says) as caught:
        use(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert torch.equal(logits(model, token_ids(2, 9)), expected)


def test_a_quick_check_works():
    assert quick_check(made("cats", 0.02), calibration_of("llama")).passed


def bad(change, says, **options):
    return pytest.param(change, options, says, id=says[:24])


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        bad({"model_type": "qwen2"}, "the plan is for a qwen2 model, and this one is llama"),
        bad({"thresholds": {"model.layers.7.mlp": 0.1}}, "it names model.layers.7.mlp, which this one lacks"),
        bad({"thresholds": {MLPS[0]: 0.1}}, "it has no threshold for model.layers.1.mlp"),
        bad({"thresholds": {}}, "it has no threshold for model.layers.0.mlp"),
        bad({"rule": "magic"}, "rule 'magic' is unknown"),
        bad({"kept_heads": 5}, "the plan keeps 5 heads, and this model has 4"),
        bad({}, "method cats needs a calibration and settle_tokens above 0", calibration=None),
        bad({}, "method cats needs a calibration and settle_tokens above 0", settle_tokens=0),
        bad({}, "backend must be auto, got triton", backend="triton"),
        bad({}, "calibration is of another model", calibration="qwen2"),
        bad({}, "settle_tokens must be 0", settle_tokens=-1),
    ],
)
def test_bad_plans_leave_a_dense_model(change, options, says):
    model = tiny_model("llama")
    plan = dataclasses.replace(make_recipe(model, "cats", 0.3), **change)
    of = options.get("calibration", "llama")
    with pytest.raises(RSparseError, match=says):
        sparsify(model, plan, **(options | {"calibration": of and calibration_of(of)}))
    assert not is_sparse(model)
    assert torch.equal(logits(model, token_ids(2, 9)), logits(tiny_model("llama"), token_ids(2, 9)))
    assert not model.base_model._forward_pre_hooks


def test_a_sparse_model_is_refused_and_stays():
    model = made("cats")
    with pytest.raises(RSparseError, match="this model is sparse already; densify it first"):
        sparsify(model, make_recipe(tiny_model("llama"), "dejavu", 0.3), calibration_of("llama"))
    assert state(model).method == "cats"


def test_an_error_while_settling_leaves_a_dense_model(monkeypatch):
    monkeypatch.setattr(GatedMLP, "settle", lambda self, rows: 1 / 0)
    model = tiny_model("llama")
    with pytest.raises(ZeroDivisionError):
        sparsify(model, make_recipe(model, "cats", 0.3), calibration_of("llama"))
    assert not is_sparse(model)
    assert {type(module) for module in model.modules()} == {type(module) for module in tiny_model("llama").modules()}


def test_griffin_starts_under_a_policy_that_it_takes():
    model, ids = made("griffin"), token_ids(2, 9)
    assert torch.equal(logits(model, ids), logits(tiny_model("llama"), ids))
    with (
        state(model).policy.using(TokenPolicy("all")),
        pytest.raises(RSparseError, match="griffin chooses its neurons from a dense prompt, and token policy all has none"),
    ):
        logits(model, ids)


def test_the_state_is_of_its_kind():
    assert isinstance(state(made("cats")), GatedState)
