"""Swapped linears: rows, groups, dtypes, and the way back."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from rsparse.bytes_read import bytes_per_token
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from rsparse.fingerprint import weights_sha
from rsparse.ops import reference
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import (
    achieved_sparsity,
    densify,
    is_sparse,
    measuring,
    set_backend,
    set_thresholds,
    state,
    unit_members,
)
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import FITS, LAYOUTS, TYPES, calibration_of, sparse_of, uniform, with_vectors
from tests.support.tolerance import assert_close_rms, relative_rms

every_kind = pytest.mark.parametrize(
    ("model_type", "grouping", "stacked", "fit"),
    [(model_type, *layout, fit) for model_type in TYPES for layout in LAYOUTS for fit in FITS],
)


@torch.no_grad()
def logits(model, ids, **options):
    return model(ids, **options).logits


def fresh(model_type="llama", dtype=torch.float32, grouping="group", stacked=True, fit="svd", criterion="column_norm"):
    """A sparse model of the test's own, to be changed."""
    model = tiny_model(model_type, dtype=dtype)
    recipe = uniform(model, 0.5, 0.6, grouping=grouping, stacked=stacked, criterion=criterion, fit=fit)
    return sparsify(model, recipe, calibration_of(model_type))


# ---- and back


@every_kind
def test_densify_restores_weights_and_logits_bit_for_bit(model_type, grouping, stacked, fit):
    original, ids = tiny_model(model_type), token_ids(3, 9)
    model = fresh(model_type, grouping=grouping, stacked=stacked, fit=fit)
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    assert relative_rms(logits(model, ids), logits(original, ids)) > 0.1
    assert densify(model) is model
    assert not is_sparse(model)
    assert torch.equal(logits(model, ids), logits(original, ids))
    assert list(model.state_dict()) == list(original.state_dict())
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert {type(module) for module in model.modules()} == {type(module) for module in original.modules()}
    assert not model.base_model._forward_pre_hooks
    assert not hasattr(model.config, "quantization_config")


def test_sparse_and_dense_again_any_number_of_times():
    model, ids = tiny_model("qwen2"), token_ids(2, 9)
    recipe = uniform(model, 0.5, 0.6)
    results = []
    for _ in range(2):
        sparsify(model, recipe, calibration_of("qwen2"))
        results.append(logits(model, ids))
        densify(model)
    assert torch.equal(*results)


def test_densify_needs_a_sparse_model():
    with pytest.raises(RSparseError, match="dense"):
        densify(tiny_model("llama"))
    with pytest.raises(RSparseError, match="dense"):
        state(tiny_model("llama"))


def test_the_fingerprint_is_that_of_the_dense_weights():
    model = fresh()
    assert weights_sha(model) == weights_sha(tiny_model("llama"))
    assert weights_sha(model) != weights_sha(tiny_model("llama", seed=1))


# ---- rows


@every_kind
def test_policy_dense_is_the_dense_model_bit_for_bit(model_type, grouping, stacked, fit):
    model, original = sparse_of(model_type, grouping, stacked, fit), tiny_model(model_type, dtype=torch.float64)
    for ids in (token_ids(3, 9), token_ids(1, 4)):  # by masked GEMM, by gathering
        with state(model).policy.using(TokenPolicy("dense")):
            assert torch.equal(logits(model, ids), logits(original, ids))
        with state(model).policy.using(TokenPolicy("all", sink_tokens=100)):  # a mask that is False throughout
            assert torch.equal(logits(model, ids), logits(original, ids))
        with state(model).policy.using(TokenPolicy("decode")):
            assert torch.equal(logits(model, ids), logits(original, ids))
        assert relative_rms(logits(model, ids), logits(original, ids)) > 0.1


POLICIES = [
    (TokenPolicy("all"), None),
    (TokenPolicy("all", sink_tokens=2), None),
    (TokenPolicy("last_fraction", 0.5), None),
    (TokenPolicy("decode"), [4, 2, 9]),
]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("policy", "prompts"), POLICIES, ids=str)
@pytest.mark.parametrize("model_type", TYPES)
def test_a_padded_batch_is_each_row_alone(model_type, policy, prompts, side):
    """The rows alone are gathered, or of another count than the batch's: an answer never depends on that."""
    model, lengths = sparse_of(model_type), [8, 3, 12]
    rows = [token_ids(1, length, seed=length) for length in lengths]
    ids, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    places = [slice(12 - n, 12) if side == "left" else slice(0, n) for n in lengths]
    for i, place in enumerate(places):
        ids[i, place], mask[i, place] = rows[i], 1
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    prompt_lengths = None if prompts is None else torch.tensor(prompts)
    with state(model).policy.using(policy, prompt_lengths), measuring(model) as together:
        batched = logits(model, ids, attention_mask=mask, position_ids=positions)
    with measuring(model) as alone:
        for i, place in enumerate(places):
            with state(model).policy.using(policy, None if prompt_lengths is None else prompt_lengths[i : i + 1]):
                assert_close_rms(batched[i : i + 1, place], logits(model, rows[i]), torch.float64)
    assert together.sparse_rows == alone.sparse_rows > 0
    for name in unit_members(model):
        assert together.kept_share(name) == alone.kept_share(name)


@pytest.mark.parametrize("model_type", TYPES)
def test_gathered_rows_alone_equal_the_batch(model_type):
    """Without a meter: eight rows or fewer take the other path."""
    model, ids = sparse_of(model_type), token_ids(4, 7)
    together = logits(model, ids)
    for i in range(4):
        assert_close_rms(logits(model, ids[i : i + 1]), together[i : i + 1], torch.float64)


@pytest.mark.parametrize("model_type", TYPES)
def test_token_by_token_equals_one_pass(model_type):
    model, ids = sparse_of(model_type), token_ids(2, 14)  # beyond gemma's sliding window of 6
    whole = logits(model, ids, use_cache=False)
    cache = DynamicCache(config=model.config)
    steps = [logits(model, ids[:, i : i + 1], past_key_values=cache) for i in range(14)]
    assert_close_rms(torch.cat(steps, dim=1), whole, torch.float64)


@pytest.mark.parametrize("model_type", TYPES)
def test_decode_is_a_dense_prompt_and_sparse_tokens_after(model_type):
    """One call with prompt lengths, and a prefill with decode steps after it, are the same."""
    model, ids = sparse_of(model_type), token_ids(2, 12)
    with state(model).policy.using(TokenPolicy("decode"), torch.tensor([7, 7])):
        whole = logits(model, ids, use_cache=False)
    cache = DynamicCache(config=model.config)
    with state(model).policy.using(TokenPolicy("decode")):
        parts = [logits(model, ids[:, :7], past_key_values=cache)]
        parts += [logits(model, ids[:, i : i + 1], past_key_values=cache) for i in range(7, 12)]
    assert_close_rms(torch.cat(parts, dim=1), whole, torch.float64)
    assert relative_rms(whole[:, 7:], logits(model, ids)[:, 7:]) > 0.01


# ---- groups


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("stacked", [False, True])
def test_a_groups_members_share_threshold_scale_and_mask(model_type, stacked):
    model = fresh(model_type, stacked=stacked)
    groups = unit_members(model)
    assert [len(members) for members in groups.values()] == [3, 1, 2, 1] * model.config.num_hidden_layers
    masks: dict[str, list[torch.Tensor]] = {}
    for name, members in groups.items():
        for member in members:
            assert member.threshold is members[0].threshold
            assert member.channel_scale is members[0].channel_scale
            member.register_forward_pre_hook(
                lambda module, args, name=name: masks.setdefault(name, []).append(
                    reference.keep_mask(args[0], module.channel_scale, module.threshold)
                )
            )
    logits(model, token_ids(2, 12))
    assert all(torch.equal(mask, found[0]) for found in masks.values() for mask in found)
    assert all(0.2 < float(found[0].float().mean()) < 0.8 for found in masks.values())


def test_set_thresholds_reaches_model_and_recipe():
    model = fresh()
    others = {name: unit.threshold for name, unit in state(model).recipe.units.items()}
    set_thresholds(model, {"model.layers.1.qkv": 0.125})
    assert [float(member.threshold) for member in unit_members(model)["model.layers.1.qkv"]] == [0.125] * 3
    assert state(model).recipe.units["model.layers.1.qkv"].threshold == 0.125
    others.pop("model.layers.1.qkv")
    assert all(state(model).recipe.units[name].threshold == value for name, value in others.items())


def test_what_is_shared_is_in_the_state_dict_once():
    for stacked in (True, False):
        names = set(fresh(stacked=stacked).state_dict()) - set(tiny_model("llama").state_dict())
        found = sorted(name.removeprefix("model.layers.0.self_attn.") for name in names if "layers.0.self_attn" in name)
        expected = ["k_proj.U", "q_proj.U", "q_proj.V", "q_proj.channel_scale", "v_proj.U"]
        expected += ["o_proj.U", "o_proj.V", "o_proj.channel_scale"]
        assert found == sorted(expected + ([] if stacked else ["k_proj.V", "v_proj.V"]))


# ---- dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_rounds_weights_but_neither_threshold_nor_scale(dtype):
    model = fresh()
    before = {
        name: (member.threshold.clone(), member.channel_scale.clone())
        for name, member in model.named_modules()
        if isinstance(member, RSparseLinear)
    }
    assert any(threshold != threshold.bfloat16().float() for threshold, _ in before.values())
    model.to(dtype)
    for name, (threshold, scale) in before.items():
        member = model.get_submodule(name)
        assert member.weight.dtype == member.U.dtype == member.V.dtype == dtype
        assert member.threshold.dtype == member.channel_scale.dtype == torch.float32
        assert torch.equal(member.threshold, threshold)
        assert torch.equal(member.channel_scale, scale)
    assert logits(model, token_ids(2, 9)).isfinite().all()


def test_a_cast_keeps_what_a_group_shares():
    model = fresh()
    model.to(torch.bfloat16)
    for members in unit_members(model).values():
        for member in members[1:]:
            for name in ("threshold", "channel_scale", "V"):
                assert getattr(member, name) is getattr(members[0], name), f"{name} of {member.unit} is a copy"


def test_a_bf16_model_is_near_its_fp32_self_where_no_threshold_is_near():
    """One linear: scores keep a margin of 2 % from the threshold, so that rounding x flips none."""
    model = fresh(dtype=torch.bfloat16)
    member = unit_members(model)["model.layers.0.down"][0]
    x = torch.randn(16, member.in_features, generator=torch.Generator().manual_seed(0))
    near = (x.abs() * member.channel_scale / member.threshold - 1).abs() < 0.02
    x = torch.where(near, 0, x).bfloat16()
    state(model).policy.sparse = True
    with torch.no_grad():
        y = member(x)
        m = (x.float().abs() * member.channel_scale > member.threshold).float()
        W, U, V = member.weight.float(), member.U.float(), member.V.float()
        expected = (x * m) @ W.T + (x * (1 - m)) @ V @ U.T
    assert y.dtype == torch.bfloat16
    assert_close_rms(y, expected, torch.bfloat16)


# ---- compensation


@pytest.mark.parametrize(("grouping", "stacked"), LAYOUTS)
def test_vectors_cost_sparsity_and_bytes(grouping, stacked):
    """out numbers for each linear, whatever the unit keeps: [48 + 24 + 24 + 48 + 80 + 80 + 48] a block."""
    model, ids = fresh(grouping=grouping, stacked=stacked), token_ids(2, 12)
    found = []
    for _ in range(2):
        with measuring(model) as meter:
            logits(model, ids)
        total, by_unit = achieved_sparsity(model, meter)
        found.append((total, by_unit, bytes_per_token(model, by_unit)))
        if len(found) == 1:
            with_vectors(model)
            for members in unit_members(model).values():
                for member in members:
                    member.compensation.zero_()
    (total, by_unit, size), (total_after, by_unit_after, size_after) = found
    numbers, weights = 2 * 352, 2 * 48 * (48 + 24 + 24 + 48 + 80 + 80 + 80)
    assert total - total_after == pytest.approx(numbers / weights, rel=1e-9)
    assert size_after - size == pytest.approx(4 * numbers, abs=1)  # each is rounded
    for name, unit in state(model).recipe.units.items():
        assert by_unit[name] - by_unit_after[name] == pytest.approx(1 / unit.in_features, rel=1e-9)


@pytest.mark.parametrize("model_type", TYPES)
def test_densify_and_policy_dense_know_no_vectors(model_type):
    original, ids, model = tiny_model(model_type), token_ids(3, 9), fresh(model_type)
    plain = logits(model, ids)
    with_vectors(model)
    assert relative_rms(logits(model, ids), plain) > 0.1
    with state(model).policy.using(TokenPolicy("dense")):
        assert torch.equal(logits(model, ids), logits(original, ids))
    with state(model).policy.using(TokenPolicy("all", sink_tokens=9)):
        assert torch.equal(logits(model, ids), logits(original, ids))
    densify(model)
    assert torch.equal(logits(model, ids), logits(original, ids))
    assert list(model.state_dict()) == list(original.state_dict())


# ---- refusals


def test_a_backend_that_is_not_there():
    model, ids = fresh(), token_ids(1, 6)
    before = logits(model, ids)
    with pytest.raises(RSparseError, match="'magic'"):
        set_backend(model, "magic")
    assert torch.equal(logits(model, ids), before)
    set_backend(model, "reference")
    assert torch.equal(logits(model, ids), before)


def test_measuring_a_dense_model_counts_nothing():
    model = tiny_model("llama")
    with measuring(model) as meter:
        logits(model, token_ids(1, 4))
    assert meter.sparse_rows == 0


def test_measuring_ends_with_its_block():
    model = fresh()
    with pytest.raises(ValueError, match="stop"), measuring(model) as meter:
        raise ValueError("stop")
    logits(model, token_ids(1, 4))
    assert meter.sparse_rows == 0
    assert all(member.meter is None for members in unit_members(model).values() for member in members)


def test_linears_stay_linears_in_their_mode():
    model = tiny_model("llama").train()
    recipe = dataclasses.replace(uniform(model, 0.5), method="sparse_only")
    sparsify(model, recipe, calibration_of("llama"))
    members = [module for module in model.modules() if isinstance(module, RSparseLinear)]
    assert all(isinstance(member, nn.Linear) and member.training for member in members)
    assert "rank=0" in repr(members[0])
