"""Where a given model's blocks, input sites and linears are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from rsparse.errors import RSparseError
from rsparse.models import spec_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Site:
    """One input of a block, and the linears that read it, in order, by full name."""

    name: str
    linears: Mapping[str, nn.Linear]

    @property
    def in_features(self) -> int:
        return next(iter(self.linears.values())).in_features

    @property
    def first(self) -> nn.Linear:
        return next(iter(self.linears.values()))

    @property
    def shapes(self) -> dict[str, int]:
        """out_features by full linear name."""
        return {name: linear.out_features for name, linear in self.linears.items()}


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks. Raises RSparseError for an architecture without an ArchSpec."""
    found = model.get_submodule(spec_for(model.config).blocks)
    assert isinstance(found, nn.ModuleList)
    return found


def sites(model: PreTrainedModel) -> list[list[Site]]:
    """Input sites, block by block, in the order of execution."""
    spec = spec_for(model.config)
    result = []
    for index, block in enumerate(blocks(model)):
        prefix = f"{spec.blocks}.{index}"
        in_block = []
        for group in spec.groups:
            linears = {f"{prefix}.{name}": block.get_submodule(name) for name in group.linears}
            for name, linear in linears.items():
                if not isinstance(linear, nn.Linear):
                    raise RSparseError(f"{name} is a {type(linear).__name__}, not a plain linear; load the model unquantised")
            in_block.append(Site(f"{prefix}.{group.name}", linears))  # type: ignore[arg-type]
        result.append(in_block)
    return result


def unit_shapes(model: PreTrainedModel, grouping: str) -> dict[str, tuple[dict[str, int], int]]:
    """Unit name → (out_features by linear, in_features), for `grouping` 'linear' or 'group'."""
    units: dict[str, tuple[dict[str, int], int]] = {}
    for block in sites(model):
        for site in block:
            if grouping == "group":
                units[site.name] = (site.shapes, site.in_features)
            else:
                units.update({name: ({name: out}, site.in_features) for name, out in site.shapes.items()})
    return units


def head_dim(model: PreTrainedModel) -> int:
    """Size of an attention head."""
    attention: Any = blocks(model)[0].self_attn
    found: int = attention.head_dim
    return found


def check_positions(model: PreTrainedModel, tokens: int, what: str) -> None:
    """Raises RSparseError where `tokens` are more than the model was made for."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise RSparseError(f"{what} do not fit into the model's {limit} positions")


def linear_weights(model: PreTrainedModel) -> int:
    """Weights in all linears of all blocks: the denominator of every sparsity."""
    return sum(linear.weight.numel() for block in sites(model) for site in block for linear in site.linears.values())
