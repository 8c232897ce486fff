"""Bytes of weights that one decoded token reads at batch 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rsparse.models.layout import linear_weights, sites
from rsparse.sparse_model import is_sparse, state

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def dense_bytes_per_token(model: PreTrainedModel) -> int:
    """All linears of all blocks with their biases, and the head; neither embeddings' rows, norms nor KV."""
    linears = [linear for block in sites(model) for site in block for linear in site.linears.values()]
    head = model.get_output_embeddings().weight
    biases = sum(linear.bias.numel() for linear in linears if linear.bias is not None)
    return (linear_weights(model) + biases) * linears[0].weight.element_size() + head.numel() * head.element_size()


def bytes_per_token(model: PreTrainedModel, sparsity_by_unit: Mapping[str, float]) -> int:
    """The same with what each unit reads in place of its weights: kept channels, low-rank factors, compensation, score scale.

    `sparsity_by_unit` is what a SparsityMeter measured.
    """
    total = dense_bytes_per_token(model)
    if not is_sparse(model):
        return total
    size, found = next(model.parameters()).element_size(), state(model)
    sizes = found.unit_sizes()
    saved = sum(share * sizes[name] for name, share in sparsity_by_unit.items()) * size
    return round(total - saved) + found.extra_bytes(model)
