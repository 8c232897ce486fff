"""Log-likelihoods of continuations, batched by length, with the head run on the continuations alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

from rsparse.errors import RSparseError
from rsparse.losses import batch_tokens as default_batch_tokens
from rsparse.losses import head_slices, hidden_states, logits_of
from rsparse.progress import progress
from rsparse.sparse_model import is_sparse, state
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _Input(NamedTuple):
    """What the model reads: all but the last token, which is only predicted. `scored` of the predictions count."""

    ids: tuple[int, ...]
    scored: int


@torch.no_grad()
def score_continuations(
    model: PreTrainedModel,
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    token_policy: TokenPolicy | None = None,
    *,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    label: str = "score",
) -> list[tuple[float, bool]]:
    """(sum of log p of the continuation's tokens, whether each is the model's first choice) of (context, continuation) ids.

    Longer ones than `max_length` lose tokens of the context, on the left. Under `decode` the context is dense and
    the continuation sparse, so that a continuation of one token is the dense model's. Raises RSparseError where
    either is empty, and where the continuation alone is longer.
    """
    token_policy = token_policy or TokenPolicy()
    device = next(model.parameters()).device
    limit = max_length or int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
    targets = shared_inputs(requests, limit)
    results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    with progress(len(requests), label, unit="request") as bar:
        for inputs in _by_length(list(targets), batch_tokens or default_batch_tokens(model)):
            asked = [(number, index) for number, each in enumerate(inputs) for index in targets[each]]
            continuations = [(number, requests[index][1]) for number, index in asked]
            scores = _score(model, inputs, continuations, token_policy, device)
            for (_, index), score in zip(asked, scores, strict=True):
                results[index] = score
            bar.update(len(asked))
    return results


def shared_inputs(requests: Sequence[tuple[Sequence[int], Sequence[int]]], limit: int) -> dict[_Input, list[int]]:
    """Indices of requests by what the model reads for them: answers of one token to one question share it all, and run once."""
    inputs: dict[_Input, list[int]] = {}
    for index, (context, continuation) in enumerate(requests):
        if not context or not 0 < len(continuation) <= limit:
            sizes = f"{len(context)} and {len(continuation)} tokens"
            raise RSparseError(f"cannot score a context and a continuation of {sizes} in {limit} positions")
        ids = (*context, *continuation)[-(limit + 1) : -1]
        inputs.setdefault(_Input(ids, len(continuation)), []).append(index)
    return inputs


def _by_length(inputs: list[_Input], budget: int) -> Iterator[list[_Input]]:
    """Batches of at most `budget` tokens, padding included; the longest first, so that too little memory shows at once."""
    batch: list[_Input] = []
    for each in sorted(inputs, key=lambda found: -len(found.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > budget:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _score(
    model: PreTrainedModel,
    inputs: list[_Input],
    continuations: list[tuple[int, Sequence[int]]],
    token_policy: TokenPolicy,
    device: torch.device,
) -> list[tuple[float, bool]]:
    """Scores of `continuations`, each with the number of its input."""
    # Padding is on the right, where causal attention never looks: no attention mask, so that the fast kernels run.
    width = len(inputs[0].ids)
    ids = torch.tensor([(*each.ids, *[0] * (width - len(each.ids))) for each in inputs], device=device)
    using: Any = contextlib.nullcontext()
    if is_sparse(model):
        lengths = torch.tensor([len(each.ids) for each in inputs], device=device)
        contexts = torch.tensor([len(each.ids) + 1 - each.scored for each in inputs], device=device)
        using = state(model).policy.using(token_policy, contexts if token_policy.kind == "decode" else None, lengths)
    positions, targets, owners = list[int](), list[int](), list[int]()
    for owner, (number, tokens) in enumerate(continuations):
        stop = number * width + len(inputs[number].ids)
        positions += range(stop - len(tokens), stop)
        targets += tokens
        owners += [owner] * len(tokens)
    with using:
        hidden = hidden_states(model, ids).flatten(0, 1)[torch.tensor(positions, device=device)]
    wanted, owner_of = torch.tensor(targets, device=device), torch.tensor(owners, device=device)
    sums = torch.zeros(len(continuations), dtype=torch.float64, device=device)
    misses = torch.zeros(len(continuations), dtype=torch.int64, device=device)
    for start, rows in head_slices(hidden, model):
        logits, here = logits_of(model, rows), slice(start, start + len(rows))
        sums.index_add_(0, owner_of[here], -F.cross_entropy(logits, wanted[here], reduction="none").double())
        misses.index_add_(0, owner_of[here], (logits.argmax(-1) != wanted[here]).long())
    return list(zip(sums.tolist(), (misses == 0).tolist(), strict=True))
