"""The ops of a decode step in plain torch: the specification of the kernels, for any device and dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rsparse.ops.fused.types import Attention, Cache, Group, Norm
from rsparse.ops.reference import keep_mask


def wide(x: Tensor) -> Tensor:
    """fp32, or x's own fp64: a threshold is a discontinuity, and tests tell rounding from error in fp64."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """RMSNorm of x [..., n], rounded where transformers rounds."""
    y = wide(x)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.eps)
    if norm.plus_one:
        return (y * (1 + wide(norm.weight))).to(x.dtype)
    return norm.weight * y.to(x.dtype)


def act_mul(gate_up: Tensor, act: str) -> Tensor:
    """act(gate)·up of gate_up [..., 2·n], each rounded."""
    gate, up = gate_up.chunk(2, -1)
    return (F.silu(gate) if act == "silu" else F.gelu(gate, approximate="tanh")) * up


def keep(x: Tensor, group: Group, mask: int) -> Tensor:
    """m [rows, in] of one of the group's masks."""
    return keep_mask(x, None if group.channel_scale is None else group.channel_scale[mask], group.threshold[mask])


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotary embedding of x [rows, heads, d] by cos_sin [rows, d]."""
    cos, sin = wide(cos_sin).unsqueeze(1).chunk(2, -1)
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


class ReferenceOps:
    """Documented in `types.FusedOps`."""

    name = "reference"

    def project(self, x: Tensor, group: Group, add: Tensor | None = None) -> Tensor:
        inputs, weight = wide(x), wide(group.weight)
        if group.dense:
            y = inputs @ weight
        else:
            y = inputs.new_empty(x.shape[0], group.out_features)
            for index, section in enumerate(group.sections):
                m = keep(x, group, section.mask)
                columns = slice(section.start, section.stop)
                part = torch.where(m, inputs, 0) @ weight[:, columns]
                if group.U is not None and group.V is not None:
                    V = wide(group.V[:, index * group.rank : (index + 1) * group.rank])
                    part = part + torch.where(m, 0, inputs) @ V @ wide(group.U[:, columns])
                y[:, columns] = part
        for extra in (group.bias, add):
            y = y if extra is None else y + wide(extra)
        return y.to(x.dtype)

    def norm_project(self, x: Tensor, norm: Norm, group: Group, add: Tensor | None = None) -> Tensor:
        return self.project(rms_norm(x, norm), group, add)

    def act_project(self, gate_up: Tensor, act: str, group: Group, add: Tensor | None = None) -> Tensor:
        return self.project(act_mul(gate_up, act), group, add)

    def mlp(self, x: Tensor, norm: Norm, gate_up: Group, act: str, down: Group, add: Tensor | None = None) -> Tensor:
        return self.act_project(self.norm_project(x, norm, gate_up), act, down, add)

    def attend(self, qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention) -> Tensor:
        rows, kv_heads, length, d = cache.k.shape
        heads = qkv.shape[1] // d - 2 * kv_heads
        q, k, v = qkv.view(rows, -1, d).split([heads, kv_heads, kv_heads], 1)
        q = q if attention.q_norm is None else rms_norm(q, attention.q_norm)
        k = k if attention.k_norm is None else rms_norm(k, attention.k_norm)
        turn = cos_sin[cache.position.long()]
        q, k = (rotate(wide(each), turn).to(qkv.dtype) for each in (q, k))
        at = cache.slot.long().view(1)
        cache.k.index_copy_(2, at, k.unsqueeze(2))
        cache.v.index_copy_(2, at, v.unsqueeze(2))
        scores = (wide(q.view(rows, kv_heads, -1, d)) @ wide(cache.k).transpose(-1, -2)) * attention.scale
        if attention.softcap is not None:
            scores = attention.softcap * torch.tanh(scores / attention.softcap)
        place = torch.arange(length, device=qkv.device)
        seen = (place >= cache.first.view(-1, 1)) & (place <= at)
        if attention.window is not None:
            seen &= place > at - attention.window
        scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
        # What lies beyond the slot was never written, and 0 · NaN is NaN.
        values = wide(cache.v).masked_fill(~seen[:, None, :, None], 0)
        return (scores.softmax(-1) @ values).to(qkv.dtype).view(rows, -1)

    def attend_project(
        self, qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention, group: Group, add: Tensor | None = None
    ) -> Tensor:
        return self.project(self.attend(qkv, cache, cos_sin, attention), group, add)

    def norm(self, x: Tensor, norm: Norm, add: Tensor | None = None) -> Tensor:
        y = rms_norm(x, norm)
        return y if add is None else add + y

    def head(self, x: Tensor, norm: Norm, lm_head: Tensor, softcap: float | None = None) -> Tensor:
        logits = wide(rms_norm(x, norm)) @ wide(lm_head).T
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)
