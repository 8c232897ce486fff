"""A dense model over windows, block by block: what its linears see, and what comes of it from some block on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse.errors import RSparseError
from rsparse.losses import window_batches
from rsparse.models.layout import Site, blocks, check_positions, sites
from rsparse.models.stepper import BlockStepper
from rsparse.sparse_model import is_sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

See = Callable[[Site, int, Tensor], None]


def check_dense(model: PreTrainedModel) -> None:
    """Raises RSparseError for a sparse model: these studies are of the dense one."""
    if is_sparse(model):
        raise RSparseError("this analysis is of a dense model, and this one is sparse; name the model that it came from")


class BlockWalk:
    """`batches` holds (first window, hidden states [batch, tokens, hidden]) at the entry of the next block."""

    def __init__(self, model: PreTrainedModel, windows: Tensor) -> None:
        check_dense(model)
        check_positions(model, windows.shape[1], f"windows of {windows.shape[1]} tokens")
        self.layout = sites(model)
        self._stepper = BlockStepper(model)
        self.batches = [(start, self._stepper.enter(ids)) for start, ids in window_batches(model, windows)]

    @torch.no_grad()
    def run(self, index: int, see: See) -> None:
        """Move all batches through block `index`; `see(site, first window, x)` gets each site's input [batch, tokens, in].

        Raises RSparseError where the states are no longer finite.
        """
        now = [0]

        def watch(site: Site) -> Any:
            def hook(module: Any, args: tuple[Tensor, ...]) -> None:
                see(site, now[0], args[0])

            return hook

        hooks = [site.first.register_forward_pre_hook(watch(site)) for site in self.layout[index]]
        try:
            for place, (start, hidden) in enumerate(self.batches):
                now[0] = start
                out = self._stepper.run(index, hidden)
                if not bool(out.isfinite().all()):
                    raise RSparseError(f"block {index}'s output is not finite in {out.dtype}; try --dtype float32")
                self.batches[place] = (start, out)
        finally:
            for each in hooks:
                each.remove()


@contextlib.contextmanager
def entered_at(model: PreTrainedModel, index: int, hidden: Tensor) -> Iterator[None]:
    """For as long as the block runs, a forward pass of `model` starts at block `index` with `hidden` as its input."""
    before = blocks(model)[:index]

    def stand_aside(*args: Any, **kwargs: Any) -> Tensor:
        return hidden

    for block in before:
        block.forward = stand_aside
    try:
        yield
    finally:
        for block in before:
            del block.forward
