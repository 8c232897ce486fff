"""What rsparse must know of an architecture, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InputGroup:
    """Linears of a block that read the same input, named relative to the block."""

    name: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class DecodeSpec:
    """What a block computes around its linears; the defaults are Llama's.

    Modules are named relative to the block, None where it has none. `norm_plus_one`: RMSNorm multiplies by 1 + weight in fp32
    and rounds last (Gemma); else it rounds the normalised x and then multiplies by the weight. `activation`,
    `attention_softcap` and `final_softcap` name fields of the configuration. `windowed`: which blocks see no further than
    `config.sliding_window`: none, `all`, or those that `config.layer_types` names. `rotary_by_type`: the rotary table is that
    of the block's layer type. Head size and softmax scale are the attention module's own; a scaled embedding scales itself.
    """

    norm_plus_one: bool = False
    attention_norm: str = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    activation: str = "hidden_act"
    attention_softcap: str | None = None
    final_softcap: str | None = None
    windowed: str | None = None
    rotary_by_type: bool = False

    def window(self, config: Any, block: int) -> int | None:
        """Tokens that block number `block` sees, itself included; None for all."""
        sliding = self.windowed == "all" or (
            self.windowed == "layer_types" and config.layer_types[block] == "sliding_attention"
        )
        return config.sliding_window if sliding else None


@dataclass(frozen=True)
class ArchSpec:
    """Where a decoder's blocks and their linears are.

    `groups` is in the order of execution. Names are those of transformers' modules, which are also those
    of the tensors on disk. `decode` is what a fused decode step needs beside them; without it there is none.
    """

    model_type: str
    blocks: str
    groups: tuple[InputGroup, ...]
    decode: DecodeSpec | None = None


GATED_DECODER = (
    InputGroup("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    InputGroup("o", ("self_attn.o_proj",)),
    InputGroup("gate_up", ("mlp.gate_proj", "mlp.up_proj")),
    InputGroup("down", ("mlp.down_proj",)),
)
