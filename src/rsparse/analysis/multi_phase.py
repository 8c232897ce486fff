"""The multi-phase ReLU study (the paper's Case I): what is left of a model whose small MLP activations become a few constants.

For the hidden input H of down_proj, entries x ≥ T0 are kept. Below T0, T_{i+1} ≤ x < T_i becomes (T_i + T_{i+1}) / 2, the last
T being the minimum of the input, so that nothing lies below it. Left open by the paper, chosen here: the input is one
token's vector (its minimum, and so its constants, are its own); between T0 and that minimum the phases are equally
wide, as in the paper's example; T0 is a layer's own constant, the quantile of the dense model's H at the asked share, so
that it is above 0 wherever less than that share is negative. The first tokens of a window stay as they are.

A bias term is what the columns of one phase add for one token, constant · Σ_{k in phase} W[:, k]. Its rank over tokens is told
from all terms of a layer, [tokens · phases, out]: `rank90` is the share of out dimensions that hold 90 % of their energy.
`dropped` is the same for what the terms stand in for, W x over the entries below T0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rsparse.analysis.walk import BlockWalk
from rsparse.errors import RSparseError
from rsparse.evaluation.perplexity import evaluate
from rsparse.gated.rules.multi_phase import multi_phase_relu, phase_of
from rsparse.models.layout import Site, sites
from rsparse.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SITE = "down"
DROPPED = 0  # in the place of a number of phases: what the terms stand in for
QUANTILE_ENTRIES = 1 << 24  # entries of a layer that tell its T0


def down_sites(model: PreTrainedModel) -> list[Site]:
    """Each block's down_proj input. Raises RSparseError where there is none."""
    found = [site for block in sites(model) for site in block if site.name.endswith(f".{SITE}")]
    if not found:
        raise RSparseError(f"{model.config.model_type} has no input {SITE!r}, the MLP's hidden one that this study is of")
    return found


@dataclass(frozen=True)
class LayerBias:
    """One layer. `t0` by sparsity; `negative`: share of H below 0; energies of the terms' components, by number of phases
    (DROPPED: of what they stand in for), largest first."""

    t0: dict[float, float]
    negative: float
    spectra: dict[int, Tensor]

    def rank90(self, phases: int) -> float:
        """Share of the components that holds 90 % of the energy; 0 where there is none."""
        energy = self.spectra[phases]
        if not bool(energy.any()):
            return 0.0
        held = energy.cumsum(0) / energy.sum()
        return min(int((held < 0.9 - 1e-12).sum()) + 1, len(energy)) / len(energy)

    def held(self, phases: int, count: int) -> float:
        """Share of the energy in the first `count` components."""
        energy = self.spectra[phases]
        return float(energy[:count].sum() / energy.sum().clamp_min(1e-300))


@torch.no_grad()
def bias_terms(
    model: PreTrainedModel, windows: Tensor, levels: Sequence[float], rank_level: float, phases: Sequence[int], sink_tokens: int
) -> list[LayerBias]:
    """By block: T0 at each level, and the terms' spectra at `rank_level`. Streams block by block."""
    walk, layers = BlockWalk(model, windows), []
    down = {site.name for site in down_sites(model)}
    with progress(len(walk.layout), "biases", unit="block") as bar:
        for index, layout in enumerate(walk.layout):
            parts: list[Tensor] = []

            def see(site: Site, start: int, x: Tensor, parts: list[Tensor] = parts) -> None:
                if site.name in down:
                    parts.append(x[:, sink_tokens:].flatten(0, 1))

            walk.run(index, see)
            weight = next(site.first.weight for site in layout if site.name in down)
            layers.append(_layer(weight, torch.cat(parts), levels, rank_level, phases))
            bar.update()
    return layers


def _layer(weight: Tensor, rows: Tensor, levels: Sequence[float], rank_level: float, phases: Sequence[int]) -> LayerBias:
    """weight: [out, in], rows: [tokens, in]"""
    flat = rows.flatten()
    flat = flat[:: -(-len(flat) // QUANTILE_ENTRIES)].float().sort().values
    t0 = {level: float(flat[min(round(level * len(flat)), len(flat) - 1)]) for level in levels}
    at = t0[rank_level]
    spectra = {DROPPED: _spectrum([torch.where(rows < at, rows, 0) @ weight.T])}
    for count in phases:
        number, constants = phase_of(rows, at, count)
        terms = ((number == i).to(weight.dtype) @ weight.T * constants[:, i : i + 1].to(weight.dtype) for i in range(count))
        spectra[count] = _spectrum(terms)
    return LayerBias(t0, float((rows < 0).double().mean()), spectra)


def _spectrum(parts: Any) -> Tensor:
    """Squared singular values of rows that come in parts [n, out], largest first, fp64 on the CPU.

    fp32 products, which blur what is below 1e-6 of the largest, are enough for 90 % of the energy and ten times as fast.
    """
    gram: Tensor | None = None
    for rows in parts:
        part = (rows.float().T @ rows.float()).double()
        gram = part if gram is None else gram + part
    assert gram is not None
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).cpu()


@contextmanager
def phased(model: PreTrainedModel, t0: Sequence[float], phases: int, sink_tokens: int) -> Iterator[list[float]]:
    """`model` with the multi-phase ReLU before each down_proj, T0 by block; yields [entries changed, entries seen]."""
    seen = [0.0, 0.0]

    def hook_of(bound: float) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            changed = multi_phase_relu(x, bound, phases)
            changed[:, :sink_tokens] = x[:, :sink_tokens]
            seen[0] += float((x[:, sink_tokens:] < bound).sum())
            seen[1] += x[:, sink_tokens:].numel()
            return (changed, *args[1:])

        return hook

    with ExitStack() as hooks:
        for site, bound in zip(down_sites(model), t0, strict=True):
            hooks.callback(site.first.register_forward_pre_hook(hook_of(bound)).remove)
        yield seen


@torch.no_grad()
def phase_point(model: PreTrainedModel, windows: Tensor, t0: Sequence[float], phases: int, sink_tokens: int) -> dict[str, Any]:
    """One point of the study: perplexity, and the share of entries that were changed."""
    with phased(model, t0, phases, sink_tokens) as seen:
        result = evaluate(model, windows, label="phases")
    return {"perplexity": result.perplexity, "tokens": result.tokens, "achieved_sparsity": seen[0] / max(seen[1], 1.0)}
