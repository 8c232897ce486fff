"""One decode step: from the last tokens to the next ones, over the fused ops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsparse.ops.fused import Cache, FusedOps
from rsparse.runtime.fused.layers import Layer, Layers, rotary_tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rsparse.runtime.fused.cache import KVCache


class Step:
    """Logits of the next token, from the last one and what the cache holds; nothing in it depends on Python's numbers.

    `at`: int32 [1 + rows], the slot that the token takes and each row's position, which one addition moves on.
    """

    def __init__(self, model: PreTrainedModel, layers: Layers, ops: FusedOps, kv: KVCache) -> None:
        self.layers, self.ops = layers, ops
        device = layers.lm_head.device
        self.token = torch.zeros(kv.rows, dtype=torch.int64, device=device)
        self.at = torch.zeros(1 + kv.rows, dtype=torch.int32, device=device)
        self.first = torch.zeros(kv.rows, dtype=torch.int32, device=device)
        tables = rotary_tables(model, layers, kv.max_len)
        self._tables = [tables[layer.table] for layer in layers.layers]
        self._caches = [Cache(k, v, self.at[:1], self.first, self.at[1:]) for k, v in zip(kv.keys, kv.values, strict=True)]

    def begin(self, length: int, first: Tensor) -> None:
        """Stand behind a prompt of `length` slots, whose rows begin at `first` [rows]."""
        self.first.copy_(first)
        self.at[:1] = length
        self.at[1:] = length - self.first

    def logits(self) -> Tensor:
        """fp32 [rows, vocab] after `token`, whose keys and values go to the cache; then one slot on."""
        layers = self.layers
        x = layers.embed(self.token)
        for layer, cache, table in zip(layers.layers, self._caches, self._tables, strict=True):
            x = self._block(x, layer, cache, table)
        logits = self.ops.head(x, layers.norm, layers.lm_head, layers.softcap)
        self.at += 1
        return logits

    def _block(self, x: Tensor, layer: Layer, cache: Cache, table: Tensor) -> Tensor:
        ops, act = self.ops, self.layers.act
        qkv = ops.norm_project(x, layer.attention_norm, layer.qkv)
        if layer.attention_post_norm is None:
            x = ops.attend_project(qkv, cache, table, layer.attention, layer.o, add=x)
        else:
            x = ops.norm(ops.attend_project(qkv, cache, table, layer.attention, layer.o), layer.attention_post_norm, add=x)
        if layer.mlp_post_norm is None:
            return ops.mlp(x, layer.mlp_norm, layer.gate_up, act, layer.down, add=x)
        return ops.norm(ops.mlp(x, layer.mlp_norm, layer.gate_up, act, layer.down), layer.mlp_post_norm, add=x)
