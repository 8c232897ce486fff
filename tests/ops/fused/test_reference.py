"""The fused ops' specification against transformers' modules and numbers worked by hand."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from rsparse.ops.fused import Cache, Group, Norm, Section, fused_ops, refusal
from rsparse.ops.fused.reference import ReferenceOps, act_mul, rotate
from tests.ops.fused import problems
from tests.support.tolerance import assert_close_rms

OPS = fused_ops("reference", torch.device("cpu"))


def test_a_group_by_hand():
    W = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    # Section 0 keeps channel 1 (2 > 1.5), section 1 keeps both.
    group = Group(
        W, torch.tensor([0.5, 0.0, 0.0]), torch.tensor([[1.0, 1.0], [4.0, 1.0]]), torch.tensor([1.5, 1.0]),
        torch.tensor([[5.0, 7.0], [11.0, 13.0]]), torch.tensor([[0.1, 0.2, 0.3]]), (Section(0, 1, 0), Section(1, 3, 1)),
    )  # fmt: skip
    y = OPS.project(torch.tensor([[-1.0, 2.0]]), group, torch.tensor([[100.0, 0.0, 0.0]]))
    # column 0: 2·10 + 0.1·(5·−1) + 0.5 + 100; columns 1 and 2: all of x, nothing dropped.
    torch.testing.assert_close(y, torch.tensor([[120.0, 38.0, 57.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("module", "plus_one"), [(LlamaRMSNorm, False), (GemmaRMSNorm, True)])
def test_norms_round_where_transformers_does(module, plus_one, dtype):
    theirs = module(48, eps=1e-5)
    theirs.weight.data = problems.random(0)(48)
    theirs = theirs.to(dtype)
    x = problems.random(1)(3, 48).to(dtype)
    assert torch.equal(OPS.norm(x, Norm(theirs.weight, 1e-5, plus_one)), theirs(x))
    assert torch.equal(OPS.norm(x, Norm(theirs.weight, 1e-5, plus_one), x), x + theirs(x))


def test_rotary_is_transformers():
    normal = problems.random(2)
    q, k, angle = normal(3, 4, 16), normal(3, 2, 16), normal(3, 8)
    cos, sin = (torch.cat([f(angle)] * 2, -1).unsqueeze(1) for f in (torch.cos, torch.sin))
    theirs = apply_rotary_pos_emb(q.unsqueeze(2), k.unsqueeze(2), cos, sin)
    cos_sin = torch.cat([angle.cos(), angle.sin()], -1)
    for mine, each in zip((q, k), theirs, strict=True):
        torch.testing.assert_close(rotate(mine, cos_sin), each.squeeze(2))


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
def test_activations(act):
    gate_up = problems.random(3)(2, 12)
    gate, up = gate_up[:, :6], gate_up[:, 6:]
    expected = torch.nn.functional.silu(gate) if act == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    assert torch.equal(act_mul(gate_up, act), expected * up)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_attention_against_a_loop(window, softcap):
    qkv, cache, cos_sin, attention = problems.attention(3, 4, 2, 16, 40, 25, padded=True, window=window, softcap=softcap)
    before = problems.copied(cache)
    y = OPS.attend(qkv, cache, cos_sin, attention).view(3, 4, 16)
    for row in range(3):
        turn = cos_sin[cache.position[row]][None]
        heads = qkv[row].view(8, 16)
        q, k = rotate(heads[None, :4], turn)[0], rotate(heads[None, 4:6], turn)[0]
        for head in range(4):
            low = int(cache.first[row]) if window is None else max(int(cache.first[row]), 25 - window + 1)
            keys = torch.cat([before.k[row, head // 2, low:25], k[head // 2][None]])
            values = torch.cat([before.v[row, head // 2, low:25], heads[6 + head // 2][None]])
            scores = keys @ q[head] / 4
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            assert_close_rms(y[row, head], scores.softmax(0) @ values, torch.float32)
        torch.testing.assert_close(cache.k[row, :, 25], k)
        torch.testing.assert_close(cache.v[row, :, 25], heads[6:])
    for name in ("k", "v"):
        mine, old = (getattr(each, name).clone() for each in (cache, before))
        mine[:, :, 25] = old[:, :, 25] = 0
        torch.testing.assert_close(mine, old, rtol=0, atol=0, equal_nan=True)


def test_head_norms_come_before_rotary():
    weight = problems.norm(16)
    qkv, cache, cos_sin, plain = problems.attention(1, 2, 1, 16, 8, 3)
    _, other, _, normed = problems.attention(1, 2, 1, 16, 8, 3, q_norm=weight, k_norm=weight)
    heads = qkv.view(1, 4, 16)
    by_hand = torch.cat([OPS.norm(heads[0, :3], weight)[None], heads[:, 3:]], 1).view(1, -1)
    torch.testing.assert_close(OPS.attend(qkv, other, cos_sin, normed), OPS.attend(by_hand, cache, cos_sin, plain))


def test_composites_are_their_parts():
    x = problems.random(4)(2, 32)
    up, down, o = problems.group(32, (48, 48), (0, 1), 8), problems.group(48, (32,)), problems.group(32, (32,))
    weight = problems.norm(32)
    whole = OPS.mlp(x, weight, up, "silu", down, x)
    assert torch.equal(whole, OPS.project(act_mul(OPS.project(OPS.norm(x, weight), up), "silu"), down, x))
    qkv, cache, cos_sin, attention = problems.attention(2, 2, 1, 16, 8, 3)
    twin = problems.copied(cache)
    whole = OPS.attend_project(qkv, cache, cos_sin, attention, o, x)
    assert torch.equal(whole, OPS.project(OPS.attend(qkv, twin, cos_sin, attention), o, x))


def test_a_dense_group_is_a_group_that_keeps_all():
    dense = problems.group(32, (16, 8), (0, 1), dense=True)
    kept = Group(**{**dense.__dict__, "dense": False})
    x = problems.random(5)(3, 32)
    torch.testing.assert_close(OPS.project(x, dense), OPS.project(x, kept))
    torch.testing.assert_close(OPS.project(x, dense), x @ dense.weight + dense.bias)


def test_head():
    x, W, weight = problems.random(6)(2, 32), problems.random(7)(50, 32).bfloat16(), problems.norm(32, torch.bfloat16)
    logits = OPS.head(x.bfloat16(), weight, W, 2.0)
    assert logits.dtype == torch.float32
    plain = OPS.norm(x.bfloat16(), weight).float() @ W.float().T
    torch.testing.assert_close(logits, 2 * torch.tanh(plain / 2))


def test_fp64_stays_fp64():
    x = problems.random(8)(2, 32).double()
    single = problems.group(32, (16,), rank=8)
    double = Group(**{k: v.double() if k in ("weight", "bias", "U", "V") else v for k, v in single.__dict__.items()})
    y = OPS.project(x, double)
    assert y.dtype == torch.float64
    assert_close_rms(OPS.project(x.float(), single), y, torch.float32)
    qkv, cache, cos_sin, attention = problems.attention(1, 2, 1, 16, 8, 3, torch.float64)
    assert OPS.attend(qkv, cache, cos_sin, attention).dtype == torch.float64
    assert isinstance(cache, Cache)


def test_dispatch():
    cpu = torch.device("cpu")
    assert isinstance(fused_ops("cpu", cpu), ReferenceOps)
    assert refusal("reference", cpu, torch.float32, 64) is None
    assert "CUDA" in refusal("triton", cpu, torch.float32, 64)
