"""How masks of a real model vary over tokens, recorded once, and random weights whose masks vary alike."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsparse.calibration.histogram import solve_threshold
from rsparse.models import spec_for
from rsparse.models.layout import blocks, sites

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORDED = Path(__file__).parent / "mask_statistics.json"
LARGEST_SPREAD = 4.0  # of ln gain: far beyond what any site showed


@torch.no_grad()
def measure(model: PreTrainedModel, ids: Tensor, sparsities: Sequence[float], skip: int = 1) -> dict[str, Any]:
    """Statistics of magnitude masks of a dense `model` over the tokens of `ids` [windows, tokens], by sparsity and site kind.

    Of each site, with the threshold that keeps the asked share of its channels over all tokens but the first `skip`: `std`,
    the standard deviation over tokens of the kept share; `again`, the share of a token's kept channels that the next token
    keeps too; `anytime`, the same for any two tokens, E[p²]/E[p] over channels kept with probability p. Means over blocks.
    """
    found: dict[str, dict[str, list[dict[str, float]]]] = {f"{s:g}": {} for s in sparsities}

    def look(kind: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0][:, skip:]
            for sparsity in sparsities:
                t = solve_threshold(x.flatten(0, 1), None, 1 - sparsity)
                found[f"{sparsity:g}"].setdefault(kind, []).append(_of_mask(x.abs().float() > t))

        return hook

    handles = [
        site.first.register_forward_pre_hook(look(site.name.rpartition(".")[2])) for block in sites(model) for site in block
    ]
    try:
        model.base_model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {
        sparsity: {
            kind: {name: round(sum(each[name] for each in rows) / len(rows), 4) for name in rows[0]}
            for kind, rows in kinds.items()
        }
        for sparsity, kinds in found.items()
    }


def _of_mask(m: Tensor) -> dict[str, float]:
    """m: bool [windows, tokens, channels]."""
    kept = m.float()
    p = kept.mean((0, 1))
    both = (kept[:, 1:] * kept[:, :-1]).sum() / kept[:, :-1].sum()
    return {"std": float(kept.mean(-1).std()), "again": float(both), "anytime": float(p.square().mean() / p.mean())}


def recorded() -> dict[str, Any]:
    """The statistics in this package: `source` and, by sparsity and site kind, what `measure` gives."""
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def spread_for(anytime: float, share: float) -> float:
    """sigma of channel gains exp(sigma·n) for which normal activations times gains, cut to keep `share`, give `anytime`.

    0 where `anytime` is no more than that of equal channels, which is `share`.
    """
    low, high = 0.0, LARGEST_SPREAD
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _anytime(middle, share) < anytime else (low, middle)
    return low


def _anytime(sigma: float, share: float) -> float:
    gains = torch.exp(sigma * torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000))
    low, high = -40.0, 40.0  # of ln t
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(_kept(gains, middle).mean()) > share else (low, middle)
    p = _kept(gains, low)
    return float(p.square().mean() / p.mean())


def _kept(gains: Tensor, log_t: float) -> Tensor:
    """P(gain · |n| > t) for normal n."""
    return torch.special.erfc(math.exp(log_t) / gains / math.sqrt(2))


@torch.no_grad()
def spread_channels(model: PreTrainedModel, statistics: Mapping[str, Mapping[str, float]], share: float, seed: int = 0) -> None:
    """Give the inputs of a random `model`'s linears channel gains, so that two tokens share as many kept channels as recorded.

    `statistics` are one sparsity's. What makes each input is scaled: the norms before q/k/v and gate/up, v_proj before o,
    up_proj before down.
    """
    spec = spec_for(model.config).decode
    assert spec is not None
    generator = torch.Generator(model.device).manual_seed(seed)
    spreads = {kind: spread_for(values["anytime"], share) for kind, values in statistics.items()}

    def gains(like: Tensor, kind: str) -> Tensor:
        normal = torch.randn(like.shape[0], generator=generator, device=like.device)
        found = torch.exp(spreads[kind] * normal)
        return found / found.square().mean().sqrt()

    block: Any
    for block in blocks(model):
        for name, kind in ((spec.attention_norm, "qkv"), (spec.mlp_norm, "gate_up")):
            weight = block.get_submodule(name).weight
            weight.copy_(gains(weight, kind) - (1 if spec.norm_plus_one else 0))
        for linear, kind in ((block.self_attn.v_proj, "o"), (block.mlp.up_proj, "down")):
            linear.weight.mul_(gains(linear.weight, kind).to(linear.weight.dtype).unsqueeze(1))
