"""The decode loop: a prompt by the model itself, then one step after the other, on CUDA a captured graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsparse.ops.fused import FusedOps
from rsparse.runtime.fused.cache import KVCache
from rsparse.runtime.fused.layers import Layers
from rsparse.runtime.fused.sampling import Sampler
from rsparse.runtime.fused.step import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Steps between two looks at the tokens: while the host looks at some, the device runs the next ones.
CHUNK = 8
WARM_UP = 2  # kernels compile and scratch memory grows before the capture


class Session:
    """Decodes sequences of up to `max_len` tokens, prompt included, as often as asked: as many at a time as `sampler` has rows.

    All that a step reads and writes stays at its address, so the graph is captured once.
    """

    def __init__(self, model: PreTrainedModel, layers: Layers, ops: FusedOps, sampler: Sampler, max_len: int) -> None:
        device, rows = layers.lm_head.device, sampler.rows
        self.kv = KVCache(len(layers.layers), rows, layers.kv_heads, max_len, layers.head_dim, layers.lm_head)
        self.step = Step(model, layers, ops, self.kv)
        self.sampler = sampler
        self._tokens = torch.zeros(rows, max_len, dtype=torch.int64, device=device)
        self._count = torch.zeros(1, dtype=torch.int64, device=device)
        self.advance: Callable[[], None] = _captured(self) if device.type == "cuda" else self.run_step

    @property
    def rows(self) -> int:
        return self.kv.rows

    @property
    def max_len(self) -> int:
        return self.kv.max_len

    def run_step(self) -> None:
        """One token for each row: the step, the choice, and its place among the new tokens."""
        self._put(self.sampler.choose(self.step.logits()))

    @torch.no_grad()
    def begin(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, seed: int = 0) -> None:
        """Run the prompt [rows, tokens], padded on the left, and choose the first new token of each row."""
        length = input_ids.shape[1]
        self.sampler.begin(input_ids, attention_mask, seed)
        logits = self.kv.prefill(model, input_ids, attention_mask)
        self.step.begin(length, length - attention_mask.sum(1))
        self._count.zero_()
        self._put(self.sampler.choose(logits))

    @torch.no_grad()
    def tokens(self, count: int) -> Iterator[Tensor]:
        """After `begin`: `count` new tokens [rows, count] in pieces on the CPU, the first of them alone.

        A piece comes while the device is at the next one, so whoever stops early has wasted CHUNK steps.
        """
        yield self._fetch(0, 1)()
        done, pending = 1, None
        while done < count:
            steps = min(CHUNK, count - done)
            for _ in range(steps):
                self.advance()
            fetched = self._fetch(done, steps)
            done += steps
            if pending is not None:
                yield pending()
            pending = fetched
        if pending is not None:
            yield pending()

    def _put(self, token: Tensor) -> None:
        self.step.token.copy_(token)
        self._tokens.index_copy_(1, self._count, token.unsqueeze(1))
        self._count += 1

    def _fetch(self, start: int, count: int) -> Callable[[], Tensor]:
        """Ask for new tokens; the result waits for them and for nothing that is asked of the device later."""
        tokens = self._tokens[:, start : start + count]
        if not tokens.is_cuda:
            return tokens.clone
        copy = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        copy.copy_(tokens, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(tokens.device))

        def wait() -> Tensor:
            event.synchronize()
            return copy

        return wait


@torch.no_grad()
def _captured(session: Session) -> Callable[[], None]:
    with torch.cuda.device(session.step.token.device):  # else streams and the graph are of whichever is current
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                session.run_step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(session.sampler.generator)
        with torch.cuda.graph(graph, stream=stream):  # its own default is of the device that was first
            session.run_step()
    return graph.replay  # the bound method keeps the graph; it finds its device by itself
