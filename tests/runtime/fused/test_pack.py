"""Packed groups: one storage, values bit for bit."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file

from rsparse import densify, save_pretrained
from rsparse.models.layout import blocks
from rsparse.runtime import fused
from rsparse.runtime.fused.pack import pack_group
from rsparse.sparse_model import set_thresholds, unit_members
from tests.runtime.fused.cases import PROMPTS, by_modules, dense, sparse, uneven

QKV = ("q_proj", "k_proj", "v_proj")


def linears(model, names=QKV, part="self_attn"):
    return [getattr(getattr(blocks(model)[0], part), name) for name in names]


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_weights_are_views_of_one_input_major_matrix():
    model = sparse("qwen2")
    before, three = values(model), linears(model)
    group = pack_group(three)
    assert group.weight.shape == (48, 48 + 24 + 24)
    assert group.weight.is_contiguous()
    start = 0
    for linear in three:
        stop = start + linear.out_features
        assert linear.weight.data_ptr() == group.weight[:, start:].data_ptr()
        assert torch.equal(linear.weight, group.weight.T[start:stop])
        assert torch.equal(linear.U, group.U[: linear.rank, start:stop].T)
        assert linear.U.untyped_storage().data_ptr() == group.U.untyped_storage().data_ptr()
        start = stop
    assert three[0].V.untyped_storage().data_ptr() == group.V.untyped_storage().data_ptr()
    assert {name: torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()} == dict.fromkeys(
        before, True
    )


def test_stacked_factors_are_one_section():
    group = pack_group(linears(sparse("llama")))
    assert [(each.start, each.stop, each.mask) for each in group.sections] == [(0, 96, 0)]
    assert group.threshold.shape == (1,)
    assert group.V.shape == (48, group.rank)
    assert group.rank % 8 == 0


def test_factors_of_each_linear_are_a_section_each_under_one_mask():
    three = linears(sparse("llama", "group", False))
    ranks = [linear.rank for linear in three]
    factors = [(linear.V.clone(), linear.U.clone()) for linear in three]
    group = pack_group(three)
    assert [(each.start, each.stop, each.mask) for each in group.sections] == [(0, 48, 0), (48, 72, 0), (72, 96, 0)]
    assert group.rank == -(-max(ranks) // 8) * 8
    for index, (section, (v, u)) in enumerate(zip(group.sections, factors, strict=True)):
        block = group.V[:, index * group.rank : (index + 1) * group.rank]
        assert torch.equal(block @ group.U[:, section.start : section.stop], v @ u.T)


def test_units_of_their_own_have_masks_of_their_own():
    model = uneven()
    three = linears(model)
    group = pack_group(three)
    assert [(each.start, each.stop, each.mask) for each in group.sections] == [(0, 48, 0), (48, 72, 1), (72, 96, 2)]
    assert group.threshold.tolist() == [float(three[0].threshold), float("-inf"), float(three[2].threshold)]
    assert torch.equal(group.channel_scale[0], three[0].channel_scale)
    assert torch.equal(group.channel_scale[1:], torch.ones(2, 48))
    assert not group.dense


def test_what_is_dense_says_so():
    model = uneven()
    down = pack_group(linears(model, ("down_proj",), "mlp"))
    assert down.dense
    assert (down.bias, down.V, down.U, down.channel_scale) == (None, None, None, None)
    assert pack_group(linears(dense("llama"))).dense


def test_a_dense_model_stays_stored_by_row(by_steps):
    model = dense("qwen2")
    by_steps(model, PROMPTS[:1])
    packed = fused.fused_model(model, "reference").layers.layers[0]
    for group, names, part in ((packed.qkv, QKV, "self_attn"), (packed.gate_up, ("gate_proj", "up_proj"), "mlp")):
        assert group.weight.T.is_contiguous()
        start = 0
        for linear in linears(model, names, part):
            assert linear.weight.is_contiguous()
            assert linear.weight.data_ptr() == group.weight.T[start:].data_ptr()
            start += linear.out_features


def test_bias_and_compensation_are_one_vector():
    three = linears(sparse("qwen2"))
    expected = torch.cat([linear.bias + linear.compensation for linear in three])
    group = pack_group(three)
    assert torch.equal(group.bias, expected)
    assert group.bias.dtype == torch.float32
    gate_up = linears(sparse("qwen2"), ("gate_proj", "up_proj"), "mlp")
    assert torch.equal(pack_group(gate_up).bias, torch.cat([linear.compensation for linear in gate_up]))


@pytest.mark.parametrize("make", [sparse, dense])
def test_release_gives_contiguous_weights_back(make, by_steps):
    model = make("qwen2")
    before = values(model)
    found = by_steps(model, PROMPTS[:1]).token_ids
    three = linears(model)
    storages = [{linear.weight.untyped_storage().data_ptr() for linear in three}]
    fused.release(model)
    storages.append({linear.weight.untyped_storage().data_ptr() for linear in three})
    assert [len(each) for each in storages] == [1, 3]
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())
    assert {name: torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()} == dict.fromkeys(
        before, True
    )
    assert by_modules(model, PROMPTS[:1]).token_ids.tolist() == found.tolist()


@pytest.mark.parametrize("make", [sparse, dense])
def test_a_packed_model_is_saved_as_ever(make, by_steps, tmp_path):
    model = make("qwen2")
    save_pretrained(model, tmp_path / "before")
    by_steps(model, PROMPTS[:1])
    save_pretrained(model, tmp_path / "after")
    names = sorted(path.name for path in (tmp_path / "before").glob("*.safetensors"))
    assert names
    for name in names:
        one, other = (load_file(tmp_path / folder / name) for folder in ("before", "after"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_changed_model_is_packed_anew(by_steps):
    model = sparse("llama")
    before = by_steps(model, PROMPTS).token_ids.tolist()
    set_thresholds(model, dict.fromkeys(unit_members(model), 0.0))
    kept_all = by_steps(model, PROMPTS).token_ids.tolist()
    assert kept_all == by_modules(model, PROMPTS).token_ids.tolist() != before
    densify(model)
    assert by_steps(model, PROMPTS).token_ids.tolist() == by_modules(model, PROMPTS).token_ids.tolist() != kept_all


def test_a_model_that_goes_takes_its_packed_form_along(by_steps):
    model = dense("llama")
    by_steps(model, PROMPTS[:1])
    gone = weakref.ref(fused.fused_model(model, "reference"))
    assert gone() is not None
    del model
    gc.collect()
    assert gone() is None
