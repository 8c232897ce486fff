"""What rsparse must know of an architecture, as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InputGroup:
    """Linears of a block that read the same input, named relative to the block."""

    name: str
    linears: tuple[str, ...]


@dataclass(frozen=True)
class ArchSpec:
    """Where a decoder's blocks and their linears are.

    `groups` is in the order of execution. Names are those of transformers' modules, which are also those
    of the tensors on disk.
    """

    model_type: str
    blocks: str
    groups: tuple[InputGroup, ...]


GATED_DECODER = (
    InputGroup("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    InputGroup("o", ("self_attn.o_proj",)),
    InputGroup("gate_up", ("mlp.gate_proj", "mlp.up_proj")),
    InputGroup("down", ("mlp.down_proj",)),
)
