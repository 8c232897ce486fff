"""Masks of the model's own modules for a decode step, whose kernels then keep what they are told to."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rsparse.models.layout import sites
from rsparse.ops.reference import keep_mask
from rsparse.runtime.fused.layers import Layers
from rsparse.runtime.fused.pack import sections_of
from rsparse.sparse_linear import RSparseLinear


class ImposedMasks:
    """Of a sparse model with its packed `layers`, for windows with so many `tokens` behind their prompts.

    layers: the given ones, but that they drop what `impose` says: a score's scale is 1 or 0, thresholds are 0.
    table: bool [tokens, masks · in of all groups], the modules' masks of the last window that was observed.
    """

    def __init__(self, model: Any, layers: Layers, tokens: int) -> None:
        self._columns: list[tuple[RSparseLinear, slice]] = []
        groups: list[tuple[int, str, slice]] = []
        stop = 0
        for index, block in enumerate(sites(model)):
            for site in block:
                name = site.name.rpartition(".")[2]
                if getattr(layers.layers[index], name).dense:
                    continue
                start = stop
                for leader in sections_of(list(site.linears.values()))[1]:
                    if isinstance(leader, RSparseLinear):
                        self._columns.append((leader, slice(stop, stop + site.in_features)))
                    stop += site.in_features
                groups.append((index, name, slice(start, stop)))
        device = layers.lm_head.device
        self.table = torch.ones(tokens, stop, dtype=torch.bool, device=device)
        self._scale = torch.ones(stop, device=device)
        self.layers = self._scaled(layers, groups)

    def _scaled(self, layers: Layers, groups: list[tuple[int, str, slice]]) -> Layers:
        found = list(layers.layers)
        for index, name, columns in groups:
            group = getattr(found[index], name)
            scale = self._scale[columns].view(len(group.threshold), group.in_features)
            group = dataclasses.replace(group, channel_scale=scale, threshold=torch.zeros_like(group.threshold))
            found[index] = dataclasses.replace(found[index], **{name: group})
        return dataclasses.replace(layers, layers=tuple(found))

    @contextlib.contextmanager
    def observed(self, prompt: int) -> Iterator[None]:
        """Fill the table from the model's call in this block, one window, by its tokens behind the prompt."""
        with contextlib.ExitStack() as hooks:
            for leader, columns in self._columns:
                handle = leader.register_forward_pre_hook(functools.partial(self._note, columns, prompt))
                hooks.callback(handle.remove)
            yield

    def _note(self, columns: slice, prompt: int, leader: Any, inputs: tuple[Tensor, ...]) -> None:
        self.table[:, columns] = keep_mask(inputs[0][0, prompt:], leader.channel_scale, leader.threshold)

    def impose(self, at: Tensor) -> None:
        """Let the next step drop by the table's row `at`, int64 of one element."""
        self._scale.copy_(self.table.index_select(0, at).squeeze(0))
