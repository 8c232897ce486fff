"""Generate by the model's own modules, a forward call a token: any model, device, dtype and token policy."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from rsparse.runtime.request import Clock, Produced, Request
from rsparse.sparse_model import is_sparse, state


def run(model: Any, request: Request) -> Produced:
    """transformers' loop on its static cache."""
    policy: Any = contextlib.nullcontext()
    if is_sparse(model):
        # By length, not by shape of call: a prompt's last piece may be a single token.
        policy = state(model).policy.using(request.token_policy, request.attention_mask.sum(1))
    device, sampled, watch = request.input_ids.device, request.temperature > 0, request.watch
    with policy, torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=sampled):
        if sampled:
            torch.manual_seed(request.seed)
        clock = Clock(model)
        out = model.generate(
            input_ids=request.input_ids,
            attention_mask=request.attention_mask,
            max_new_tokens=request.max_new_tokens,
            cache_implementation="static",
            disable_compile=True,
            pad_token_id=request.pad,
            streamer=watch if request.rows == 1 else None,
            logits_processor=[watch.on_logits],
            **_sampling(request),
        )
        end = clock.now()
    first = watch.first or end
    return Produced(out[:, request.input_ids.shape[1] :].cpu(), first - clock.start, end - first)


def _sampling(request: Request) -> dict[str, Any]:
    """What model.generate() must be told. A checkpoint's own sampling settings would only warn on a greedy run."""
    found: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if request.temperature:
        found = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
    if not request.eos:
        found["eos_token_id"] = None
    if request.ends.stop:
        found["stopping_criteria"] = [request.ends]
    return found
