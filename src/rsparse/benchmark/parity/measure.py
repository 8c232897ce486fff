"""Whether the decode step computes what the model's own modules do: both on the same windows of text."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsparse.benchmark.parity.compared import Compared
from rsparse.benchmark.parity.figures import Parity
from rsparse.benchmark.parity.imposed import ImposedMasks
from rsparse.errors import RSparseError
from rsparse.losses import hidden_states, logits_of
from rsparse.models.layout import check_positions, head_dim
from rsparse.ops.fused import FusedOps
from rsparse.ops.fused import refusal as ops_refusal
from rsparse.progress import progress
from rsparse.runtime import fused
from rsparse.runtime.fused.layers import Layers
from rsparse.sparse_model import is_sparse, state
from rsparse.token_policy import TokenPolicy

DECODE = TokenPolicy("decode")


@dataclass(frozen=True)
class Plan:
    """How much is compared. Raises RSparseError for values out of range."""

    prompt_tokens: int = 64
    window_tokens: int = 384
    windows: int = 24

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("windows", 2)):  # of one window there is no interval
            if getattr(self, name) < least:
                raise RSparseError(f"--{name.replace('_', '-')} must be {least} or more, got {getattr(self, name)}")
        if self.window_tokens < self.prompt_tokens + 2:
            raise RSparseError(
                f"--window-tokens must be {self.prompt_tokens + 2} or more behind a prompt of {self.prompt_tokens}, "
                f"got {self.window_tokens}"
            )


def check(model: Any, plan: Plan, backend: str) -> None:
    """Raises RSparseError where `model` has no decode step by the fused ops of `backend`, or not for such windows."""
    check_positions(model, plan.window_tokens, f"windows of {plan.window_tokens} tokens")
    weight = next(model.parameters())
    why = fused.refusal(model, DECODE, rows=1, shortest=plan.prompt_tokens)
    why = why or ops_refusal(backend, weight.device, weight.dtype, head_dim(model))
    if why is not None:
        raise RSparseError(f"this model has no decode step to compare: {why}")


@torch.no_grad()
def measure(model: Any, windows: Tensor, prompt: int, backend: str) -> Parity:
    """Windows [n, tokens], each with a dense prompt, by the modules and by the step of `backend`'s fused ops.

    The step runs with its own masks and, where the model is sparse, with those of the modules as well.
    """
    packed = fused.FusedModel(model, backend)
    head, behind = packed.layers.lm_head, windows.shape[1] - prompt
    tokens = windows.new_zeros(1, behind, device=head.device)
    expected = torch.zeros(behind, len(head), device=head.device)

    def path(layers: Layers, masks: ImposedMasks | None = None) -> _Path:
        return _Path(model, layers, packed.ops(), Compared(tokens, expected, masks), windows.shape[1])

    paths, masks = {"own_masks": path(packed.layers)}, None
    if is_sparse(model):
        masks = ImposedMasks(model, packed.layers, behind)
        paths["imposed_masks"] = path(masks.layers, masks)
    nll: list[Tensor] = []
    notes: dict[str, list[Tensor]] = {name: [] for name in paths}
    with progress(len(windows), "parity", unit="window") as bar:
        for ids in windows.to(head.device).split(1):
            with contextlib.nullcontext() if masks is None else masks.observed(prompt):
                expected.copy_(_by_modules(model, ids, prompt))
            tokens.copy_(ids[:, prompt:])
            nll.append(F.cross_entropy(expected, tokens[0], reduction="none").cpu())
            for name, each in paths.items():
                notes[name].append(each.notes(ids, prompt))
            bar.update()
    # The first token's logits are the dense prompt's own.
    return Parity(torch.stack(nll)[:, 1:], {name: torch.stack(each, 1)[..., 1:] for name, each in notes.items()})


class _Path:
    """The decode step over `layers`, for windows of `length` tokens."""

    def __init__(self, model: Any, layers: Layers, ops: FusedOps, sampler: Compared, length: int) -> None:
        self.model, self.sampler = model, sampler
        self.session = fused.Session(model, layers, ops, sampler, length)

    def notes(self, ids: Tensor, prompt: int) -> Tensor:
        """[3, tokens − prompt] on the CPU, of ids [1, tokens]."""
        self.session.begin(self.model, ids[:, :prompt], torch.ones_like(ids[:, :prompt]))
        for _ in range(ids.shape[1] - prompt - 1):
            self.session.advance()
        return self.sampler.notes.to("cpu", copy=True)


def _by_modules(model: Any, ids: Tensor, prompt: int) -> Tensor:
    """Logits [tokens − prompt, vocab] fp32 of the tokens behind the prompt, in one call for ids [1, tokens]."""
    lengths = torch.tensor([prompt], device=ids.device)
    with state(model).policy.using(DECODE, lengths) if is_sparse(model) else contextlib.nullcontext():
        return logits_of(model, hidden_states(model, ids)[0, prompt - 1 : -1])
