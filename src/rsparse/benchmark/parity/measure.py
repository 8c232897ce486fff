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
from rsparse.ops.fused import refusal as ops_refusal
from rsparse.progress import progress
from rsparse.runtime import fused
from rsparse.runtime.fused.layers import Layers
from rsparse.runtime.fused.session import WARM_UP
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
        least = self.prompt_tokens + max(WARM_UP, 2)  # `Forced` needs the one; the first token's logits are the prompt's own
        if self.window_tokens < least:
            raise RSparseError(
                f"--window-tokens must be {least} or more behind a prompt of {self.prompt_tokens}, got {self.window_tokens}"
            )


def check(model: Any, plan: Plan, backend: str) -> None:
    """Raises RSparseError where `model` has no decode step by the fused ops of `backend`, or not for such windows."""
    check_positions(model, plan.window_tokens, f"windows of {plan.window_tokens} tokens")
    weight = next(model.parameters())
    why = fused.step_refusal(model, DECODE, rows=1, shortest=plan.prompt_tokens)
    why = why or ops_refusal(backend, weight.device, weight.dtype, head_dim(model))
    if why is not None:
        raise RSparseError(f"this model has no decode step to compare: {why}")


@torch.no_grad()
def measure(model: Any, windows: Tensor, prompt: int, backend: str) -> Parity:
    """Windows [n, tokens], each with a dense prompt, by the modules and by the step of `backend`'s fused ops.

    The step runs with the masks of the modules where the model is sparse, and with its own. Its head keeps fp32, so the logits
    of the modules are fp32 products of their hidden states: what their own head rounds away is no fault of the step.
    """
    packed = fused.FusedModel(model, backend)
    head, behind = packed.layers.lm_head, windows.shape[1] - prompt
    tokens = windows.new_zeros(1, behind, device=head.device)
    expected = torch.zeros(behind, len(head), device=head.device)

    def session(layers: Layers, masks: ImposedMasks | None = None) -> fused.Session:
        return fused.Session(model, layers, packed.ops(), Compared(tokens, expected, masks), windows.shape[1])

    sessions, masks = {}, None
    if is_sparse(model):
        masks = ImposedMasks(model, packed.layers, behind)
        sessions["imposed_masks"] = session(masks.layers, masks)
    sessions["own_masks"] = session(packed.layers)
    nll: list[Tensor] = []
    notes: dict[str, list[Tensor]] = {name: [] for name in sessions}
    with progress(len(windows), "parity", unit="window") as bar:
        for ids in windows.to(head.device).split(1):
            with contextlib.nullcontext() if masks is None else masks.observed(prompt):
                expected.copy_(_by_modules(model, ids, prompt))
            tokens.copy_(ids[:, prompt:])
            nll.append(F.cross_entropy(expected, tokens[0], reduction="none").cpu())
            for name, each in sessions.items():
                notes[name].append(_by_step(model, each, ids, prompt))
            bar.update()
    # The first token's logits are the dense prompt's own.
    return Parity(torch.stack(nll)[:, 1:], {name: torch.stack(each, 1)[..., 1:] for name, each in notes.items()})


def _by_step(model: Any, session: fused.Session, ids: Tensor, prompt: int) -> Tensor:
    """Its `Compared`'s notes [3, tokens − prompt] on the CPU, of ids [1, tokens]."""
    session.begin(model, ids[:, :prompt], torch.ones_like(ids[:, :prompt]))
    for _ in range(ids.shape[1] - prompt - 1):
        session.advance()
    assert isinstance(session.sampler, Compared)
    return session.sampler.notes.to("cpu", copy=True)


def _by_modules(model: Any, ids: Tensor, prompt: int) -> Tensor:
    """Logits [tokens − prompt, vocab] fp32 of the tokens behind the prompt, in one call for ids [1, tokens]."""
    lengths = torch.tensor([prompt], device=ids.device)
    with state(model).policy.using(DECODE, lengths) if is_sparse(model) else contextlib.nullcontext():
        return logits_of(model, hidden_states(model, ids)[0, prompt - 1 : -1], unrounded=True)
