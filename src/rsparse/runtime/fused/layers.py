"""A model as its decode step sees it: packed groups, norms, attention and rotary tables, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rsparse.models import DecodeSpec, spec_for
from rsparse.models.layout import blocks
from rsparse.ops.fused import Attention, Group, Norm
from rsparse.progress import progress
from rsparse.runtime.fused.coverage import ACTIVATIONS
from rsparse.runtime.fused.pack import pack_group, unpack_group
from rsparse.sparse_model import is_sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layer:
    """One block: x + o(attention(qkv(norm x))), then x + down(act(gate)·up of norm x), with a norm after either where set.

    `table` names its rotary table.
    """

    attention_norm: Norm
    qkv: Group
    attention: Attention
    o: Group
    attention_post_norm: Norm | None
    mlp_norm: Norm
    gate_up: Group
    down: Group
    mlp_post_norm: Norm | None
    table: str | None


@dataclass(frozen=True)
class Layers:
    """What a decode step reads of `model`; `embed` maps tokens [rows] to [rows, hidden]."""

    embed: nn.Module
    layers: tuple[Layer, ...]
    norm: Norm
    lm_head: Tensor
    act: str
    softcap: float | None
    kv_heads: int
    head_dim: int


def pack(model: PreTrainedModel) -> Layers:
    """Pack `model`'s linears, which stay its own (see `pack_group`), and gather what else a step needs.

    A dense model's stay stored by output row: that is what `FusedModel.ops` and cuBLAS read fastest.
    """
    config: Any = model.config
    spec = _decode(model)
    found = blocks(model)
    layers = []
    with progress(len(found), "pack", unit="block") as bar:
        for index, block in enumerate(found):
            layers.append(_layer(block, index, spec, config, by_row=not is_sparse(model)))
            bar.update()
    attention: Any = found[0].self_attn
    base: Any = model.base_model
    return Layers(
        embed=model.get_input_embeddings(),
        layers=tuple(layers),
        norm=_norm(base.norm, spec),
        lm_head=model.get_output_embeddings().weight.data,
        act=ACTIVATIONS[getattr(config, spec.activation)],
        softcap=_field(config, spec.final_softcap),
        kv_heads=attention.k_proj.out_features // attention.head_dim,
        head_dim=attention.head_dim,
    )


def unpack(model: PreTrainedModel) -> None:
    """Give every linear contiguous tensors of its own again, block by block."""
    for block in blocks(model):
        for linears in _groups(model, block):
            unpack_group(linears)


@torch.no_grad()
def rotary_tables(model: PreTrainedModel, layers: Layers, length: int) -> dict[str | None, Tensor]:
    """By name, cos and sin [length, head_dim] of the first positions, by the model's own embedding and in its dtype."""
    rotary: Any = model.base_model.rotary_emb
    like = layers.lm_head
    positions = torch.arange(length, device=like.device).unsqueeze(0)
    tables: dict[str | None, Tensor] = {}
    for name in {layer.table for layer in layers.layers}:
        cos, sin = rotary(like, positions) if name is None else rotary(like, positions, name)
        half = cos.shape[-1] // 2
        tables[name] = torch.cat([cos[0, :, :half], sin[0, :, :half]], -1).contiguous()
    return tables


def _decode(model: PreTrainedModel) -> DecodeSpec:
    spec = spec_for(model.config).decode
    assert spec is not None  # else coverage has refused
    return spec


def _groups(model: PreTrainedModel, block: nn.Module) -> Iterator[list[Any]]:
    for group in spec_for(model.config).groups:
        yield [block.get_submodule(name) for name in group.linears]


def _layer(block: Any, index: int, spec: DecodeSpec, config: Any, *, by_row: bool) -> Layer:
    groups = {
        group.name: pack_group([block.get_submodule(name) for name in group.linears], by_row=by_row)
        for group in spec_for(config).groups
    }
    attention = block.self_attn

    def norm(name: str | None) -> Norm | None:
        return None if name is None else _norm(block.get_submodule(name), spec)

    def needed(name: str) -> Norm:
        return _norm(block.get_submodule(name), spec)

    return Layer(
        attention_norm=needed(spec.attention_norm),
        qkv=groups["qkv"],
        attention=Attention(
            scale=float(attention.scaling),
            window=spec.window(config, index),
            softcap=_field(config, spec.attention_softcap),
            q_norm=norm(spec.q_norm),
            k_norm=norm(spec.k_norm),
        ),
        o=groups["o"],
        attention_post_norm=norm(spec.attention_post_norm),
        mlp_norm=needed(spec.mlp_norm),
        gate_up=groups["gate_up"],
        down=groups["down"],
        mlp_post_norm=norm(spec.mlp_post_norm),
        table=config.layer_types[index] if spec.rotary_by_type else None,
    )


def _norm(module: Any, spec: DecodeSpec) -> Norm:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(module.weight.data, float(eps), spec.norm_plus_one)


def _field(config: Any, name: str | None) -> float | None:
    return None if name is None else getattr(config, name)
