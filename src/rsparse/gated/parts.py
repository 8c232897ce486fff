"""Where a block's gated MLP and its attention heads are, found through the ArchSpec's groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from rsparse.errors import RSparseError
from rsparse.models.layout import sites

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the linears of an input group are, in the ArchSpec's order.
ROLES = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


@dataclass(frozen=True)
class BlockParts:
    """Full names by role, and the linears."""

    names: Mapping[str, str]
    linears: Mapping[str, nn.Linear]

    @property
    def mlp(self) -> str:
        """Full name of the module that holds gate, up and down."""
        return self.names["down"].rpartition(".")[0]

    @property
    def attention(self) -> str:
        return self.names["o"].rpartition(".")[0]

    def local(self, role: str) -> str:
        return self.names[role].rpartition(".")[2]

    def size(self, *roles: str) -> int:
        """Weights of the linears."""
        return sum(self.linears[role].weight.numel() for role in roles)

    @property
    def neurons(self) -> int:
        return self.linears["down"].in_features


def block_parts(model: PreTrainedModel) -> list[BlockParts]:
    """Block by block. Raises RSparseError for a model whose MLPs are not gated ones of three linears in one module."""
    found = []
    for block in sites(model):
        names: dict[str, str] = {}
        for site in block:
            roles = ROLES.get(site.name.rpartition(".")[2], ())
            names.update(zip(roles, site.linears, strict=False))
        linears = {name: linear for site in block for name, linear in site.linears.items()}
        parts = BlockParts(names, {role: linears[name] for role, name in names.items()})
        if set(names) != {role for roles in ROLES.values() for role in roles} or not _is_gated(model, parts):
            raise RSparseError(f"{model.config.model_type} has no gated MLP of one activation and three linears")
        found.append(parts)
    return found


def _is_gated(model: PreTrainedModel, parts: BlockParts) -> bool:
    homes = {parts.names[role].rpartition(".")[0] for role in ("gate", "up", "down")}
    return len(homes) == 1 and callable(getattr(model.get_submodule(parts.mlp), "act_fn", None))


def attention_heads(model: PreTrainedModel) -> int:
    """Query heads of each attention."""
    return int(model.config.num_attention_heads)
