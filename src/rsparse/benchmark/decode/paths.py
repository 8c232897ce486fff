"""Ways to decode: our step by one kind of ops or another, and the model's own modules compiled."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsparse.benchmark.decode.forced import Forced
from rsparse.models.layout import blocks
from rsparse.ops.fused import Attention, Cache, FusedOps, Group, Norm
from rsparse.ops.fused.reference import act_mul
from rsparse.runtime.fused import FusedModel, Sampler, Sampling, Session

DENSE_PATHS = ("steps", "steps-cublas", "compile-blocks", "compile", "compile-tuned")
LENGTH_MULTIPLE = 64


class Steps:
    """Our decode step over `ops`. `given` [batch, new]: tokens to go on with, None for greedy ones."""

    def __init__(
        self, model: Any, fused: FusedModel, ops: FusedOps, prompt: Tensor, new_tokens: int, given: Tensor | None
    ) -> None:
        self.name, self.model = f"steps, {ops.name}", model
        layers, vocab = fused.layers, fused.layers.lm_head.shape[0]
        sampler = Forced(given, vocab) if given is not None else Sampler(Sampling(), len(prompt), vocab, prompt.device)
        self.session = Session(model, layers, ops, sampler, rounded(prompt.shape[1] + new_tokens))
        self._mask = torch.ones_like(prompt)

    def begin(self, prompt: Tensor) -> None:
        self.session.begin(self.model, prompt, self._mask)

    def advance(self) -> None:
        self.session.advance()


class Compiled:
    """The dense model's own modules under torch.compile with a static cache, as one CUDA graph on a GPU: cuBLAS.

    What transformers' generate does with a compiled static cache, less its Python between two tokens. Its rolling cache for
    sliding windows is left out: layers hold the full length. Without `whole` each block is compiled by itself, all by one
    compilation. `tuned` lets the compiler make the matrix-vector products itself, by coordinate descent. `backend` is
    torch.compile's.
    """

    def __init__(
        self, model: Any, prompt: Tensor, new_tokens: int, given: Tensor | None, *, whole: bool, tuned: bool, backend: str
    ) -> None:
        from transformers.cache_utils import Cache as ModuleCache
        from transformers.cache_utils import StaticLayer

        self.name = f"torch.compile of {'the model' if whole else 'blocks'}, {'its own matvec' if tuned else 'cuBLAS'}"
        self.model, self.given = model, given
        length, device = rounded(prompt.shape[1] + new_tokens), prompt.device
        self.cache = ModuleCache(layers=[StaticLayer(max_cache_len=length) for _ in blocks(model)])
        self.token = torch.zeros(len(prompt), 1, dtype=torch.int64, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        start = time.perf_counter()
        self.begin(prompt)
        compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
        with torch.no_grad(), torch._inductor.config.patch(coordinate_descent_tuning=tuned):
            logits = compiled(self._logits) if whole else self._logits
            if not whole:
                self._compile_blocks(compiled)
            self._step: Callable[[], None] = lambda: self._choose(logits(self.token))
            self._step()
            self._step()
        if device.type == "cuda":
            self._step = _captured(self._step)
        self._restore_blocks()
        self.compile_seconds = time.perf_counter() - start

    def _compile_blocks(self, compiled: Callable[[Any], Any]) -> None:
        """Each block's own forward, with a cache of its layer alone: what tells blocks apart would be compiled in."""
        from transformers.cache_utils import Cache as ModuleCache

        forward: dict[type, Any] = {}
        block: Any
        for block, layer in zip(blocks(self.model), self.cache.layers, strict=True):
            run = forward.setdefault(type(block), compiled(type(block).forward))
            block.self_attn.layer_idx = 0
            block.forward = _in_its_cache(run, block, ModuleCache(layers=[layer]))

    def _restore_blocks(self) -> None:
        """A captured graph needs them no more, and a prompt is not compiled."""
        block: Any
        for index, block in enumerate(blocks(self.model)):
            if "forward" in vars(block):
                del block.forward
                block.self_attn.layer_idx = index

    def _logits(self, token: Tensor) -> Tensor:
        logits: Tensor = self.model(token, past_key_values=self.cache, use_cache=True).logits
        return logits

    def _choose(self, logits: Tensor) -> None:
        token = logits[:, -1].float().argmax(-1, keepdim=True)
        if self.given is not None:
            token = self.given.index_select(1, self._at)
            self._at += 1
        self.token.copy_(token)

    @torch.no_grad()
    def begin(self, prompt: Tensor) -> None:
        self.cache.reset()
        self._at.zero_()
        self._choose(self.model(prompt, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits)

    @torch.no_grad()
    def advance(self) -> None:
        self._step()


def _in_its_cache(run: Any, block: Any, cache: Any) -> Callable[..., Any]:
    def forward(hidden: Tensor, **arguments: Any) -> Any:
        return run(block, hidden, **{**arguments, "past_key_values": cache})

    return forward


class Cublas:
    """`ops` with dense products by cuBLAS; not for sparse groups."""

    def __init__(self, ops: FusedOps) -> None:
        self.name, self.ops = "cuBLAS", ops

    def project(self, x: Tensor, group: Group, add: Tensor | None = None) -> Tensor:
        y = x @ group.weight if add is None else torch.addmm(add, x, group.weight)
        return y if group.bias is None else y + group.bias.to(y.dtype)

    def norm_project(self, x: Tensor, norm: Norm, group: Group, add: Tensor | None = None) -> Tensor:
        return self.project(self.ops.norm(x, norm), group, add)

    def act_project(self, gate_up: Tensor, act: str, group: Group, add: Tensor | None = None) -> Tensor:
        return self.project(act_mul(gate_up, act), group, add)

    def mlp(self, x: Tensor, norm: Norm, gate_up: Group, act: str, down: Group, add: Tensor | None = None) -> Tensor:
        return self.act_project(self.norm_project(x, norm, gate_up), act, down, add)

    def attend(self, qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention) -> Tensor:
        return self.ops.attend(qkv, cache, cos_sin, attention)

    def attend_project(
        self, qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention, group: Group, add: Tensor | None = None
    ) -> Tensor:
        return self.project(self.attend(qkv, cache, cos_sin, attention), group, add)

    def norm(self, x: Tensor, norm: Norm, add: Tensor | None = None) -> Tensor:
        return self.ops.norm(x, norm, add)

    def head(self, x: Tensor, norm: Norm, lm_head: Tensor, softcap: float | None = None) -> Tensor:
        logits = F.linear(self.ops.norm(x, norm), lm_head).float()
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def dense_paths(names: list[str], model: Any, fused_backend: str, prompt: Tensor, new_tokens: int, given: Tensor | None) -> Any:
    """Dense ways to decode, one after the other, those that compile last: DENSE_PATHS, in whatever order they are named."""
    if set(names) & {"steps", "steps-cublas"}:
        fused = FusedModel(model, fused_backend)
        for name in ("steps", "steps-cublas"):
            if name in names:
                ops = Cublas(fused.ops()) if name == "steps-cublas" else fused.ops()
                yield name, Steps(model, fused, ops, prompt, new_tokens, given)
        del fused, ops
    compiler = "inductor" if prompt.is_cuda else "eager"
    for name in ("compile-blocks", "compile", "compile-tuned"):
        if name in names:
            importlib.import_module("torch._inductor.config")
            whole, tuned = name != "compile-blocks", name == "compile-tuned"
            yield name, Compiled(model, prompt, new_tokens, given, whole=whole, tuned=tuned, backend=compiler)
            torch._dynamo.reset()


def rounded(tokens: int) -> int:
    return -(-tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        step()
    return graph.replay
