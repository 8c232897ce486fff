"""Importance of input channel × singular component of each weight (the paper's Figures 1 and 3).

The paper gives no formula; ours is the norm of what channel i adds through component j, I_ij = mean over tokens
|x_i| · σ_j · |v_ij| with W = Σ σ_j u_j v_jᵀ. Both axes are sorted by their sums of I, largest first, so that the mass is in the
top-left corner (the paper sorts from small to large: lower-right). The x-corner holds the first share x of both axes;
a flat map has x² of its mass there. `joint` is that mass over the product of what the first x of the channels and the first x
of the components hold: above 1, important channels and large components go together. The top set of a map is
its tenth of cells of largest I; the overlap of two maps of one weight is the share of the top set that both have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rsparse.analysis.pictures import kind_means
from rsparse.analysis.walk import BlockWalk
from rsparse.errors import RSparseError
from rsparse.lowrank.svd import top_singular
from rsparse.models.layout import Site
from rsparse.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CORNERS = (0.1, 0.25, 0.5)
TOLD = "0.25"  # the corner that lines and pictures are of
TOP = 0.1
SIDE = 64  # cells of a drawn map


@dataclass(frozen=True)
class Source:
    """The first `samples` windows of a text."""

    text: str
    samples: int


@dataclass(frozen=True)
class WeightImportance:
    """One weight: corner masses by source and share, `joint` likewise, and overlaps of the top sets by pair of sources.

    Sources are by their place in the list given. `weight_alone`: the first source's overlap with the map of |x_i| = 1, which is
    what any two texts have in common. `picture`: the first source's sorted map, averaged to at most SIDE × SIDE.
    """

    corners: list[dict[str, float]]
    joint: list[dict[str, float]]
    overlaps: dict[tuple[int, int], float]
    weight_alone: float
    picture: Tensor


def components(weight: Tensor) -> Tensor:
    """σ_j · |v_ij| of weight [out, in] as [in, min(out, in)]."""
    _, sigma, right = top_singular(weight.float(), min(weight.shape))
    return right.abs() * sigma


def sorted_map(mean_abs: Tensor, parts: Tensor) -> Tensor:
    """I with both axes sorted by their sums, largest first; mean_abs: [in] of |x|, parts: [in, n] from `components`."""
    found = mean_abs[:, None] * parts
    rows, columns = found.sum(1).argsort(descending=True), found.sum(0).argsort(descending=True)
    return found[rows][:, columns]


def corner_mass(ordered: Tensor, share: float) -> tuple[float, float]:
    """(mass in the corner, that over the product of both bands' mass) of a sorted map."""
    rows, columns = (max(1, round(share * size)) for size in ordered.shape)
    total = float(ordered.sum())
    if total == 0:
        return 0.0, 0.0
    corner = float(ordered[:rows, :columns].sum()) / total
    return corner, corner / (float(ordered[:rows].sum()) / total * float(ordered[:, :columns].sum()) / total)


def top_set(found: Tensor) -> Tensor:
    """The tenth of the cells of largest value, as a flat bool tensor; ties are broken by place."""
    flat = found.flatten()
    chosen = flat.new_zeros(flat.shape, dtype=torch.bool)
    chosen[flat.topk(max(1, round(TOP * len(flat)))).indices] = True
    return chosen


def weight_importance(weight: Tensor, means: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> WeightImportance:
    """Figures of weight [out, in] under mean |x| [in] of each source."""
    parts = components(weight)
    sets = [top_set(mean[:, None] * parts) for mean in (means if pairs else means[:1])]
    overlaps = {(a, b): _overlap(sets[a], sets[b]) for a, b in pairs}
    corners: list[dict[str, float]] = []
    joint: list[dict[str, float]] = []
    picture = parts
    for place, mean in enumerate(means):
        ordered = sorted_map(mean, parts)
        masses = {f"{share:g}": corner_mass(ordered, share) for share in CORNERS}
        corners.append({share: mass for share, (mass, _) in masses.items()})
        joint.append({share: ratio for share, (_, ratio) in masses.items()})
        if place == 0:
            side = (min(SIDE, ordered.shape[0]), min(SIDE, ordered.shape[1]))
            picture = nn.functional.adaptive_avg_pool2d(ordered[None, None], side)[0, 0].cpu()
    return WeightImportance(corners, joint, overlaps, _overlap(sets[0], top_set(parts)), picture)


def _overlap(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum()) / float(a.sum())


def pairs_of(sources: Sequence[Source]) -> dict[str, list[tuple[int, int]]]:
    """What is compared: `texts`, any two of them at the most samples, and `samples`, each number with the most of its text."""
    most = max(source.samples for source in sources)
    full = {source.text: place for place, source in enumerate(sources) if source.samples == most}
    places = list(full.values())
    texts = [(a, b) for i, a in enumerate(places) for b in places[i + 1 :]]
    fewer = [(place, full[source.text]) for place, source in enumerate(sources) if source.samples < most]
    return {"texts": texts, "samples": fewer}


@torch.no_grad()
def importance(
    model: PreTrainedModel, windows: Mapping[str, Tensor], sources: Sequence[Source], sink_tokens: int = 1
) -> dict[str, WeightImportance]:
    """By linear's full name; `windows` [n, seq_len] by text. A window's first `sink_tokens` do not count: their few huge
    channels would be all of the mean. Streams block by block."""
    walk = BlockWalk(model, torch.cat(list(windows.values())))
    starts, at = {}, 0
    for text, ids in windows.items():
        starts[text], at = at, at + len(ids)
    slices = [slice(starts[source.text], starts[source.text] + source.samples) for source in sources]
    pairs = [pair for pairs in pairs_of(sources).values() for pair in pairs]
    found: dict[str, WeightImportance] = {}
    with progress(sum(len(site.linears) for block in walk.layout for site in block), "analyze", unit="weight") as bar:
        for index, layout in enumerate(walk.layout):
            sums = _Sums(sink_tokens)
            walk.run(index, sums)
            for site in layout:
                by_window = sums.of(site)
                means = [by_window[part].mean(0) for part in slices]
                for name, linear in site.linears.items():
                    found[name] = weight_importance(linear.weight, means, pairs)
                    bar.update()
    return found


class _Sums:
    """mean |x| by window and channel of one block's sites."""

    def __init__(self, sink_tokens: int) -> None:
        self.sink_tokens = sink_tokens
        self._parts: dict[str, list[Tensor]] = {}

    def __call__(self, site: Site, start: int, x: Tensor) -> None:
        self._parts.setdefault(site.name, []).append(x[:, self.sink_tokens :].abs().float().mean(1))

    def of(self, site: Site) -> Tensor:
        """[windows, in]"""
        return torch.cat(self._parts[site.name])


def summary(found: Mapping[str, WeightImportance], sources: Sequence[Source]) -> dict[str, Any]:
    """Means over the blocks by kind, for the first source, and over all weights."""
    first = {name: each.corners[0] for name, each in found.items()}
    result: dict[str, Any] = {
        "corner_mass": {
            share: kind_means({name: row[share] for name, row in first.items()}) for share in map("{:g}".format, CORNERS)
        }
    }
    result["joint"] = kind_means({name: each.joint[0][TOLD] for name, each in found.items()})
    result["sources"] = [{"data": source.text, "samples": source.samples} for source in sources]
    result["corner_mass_by_source"] = [
        sum(each.corners[place][TOLD] for each in found.values()) / len(found) for place in range(len(sources))
    ]
    for what, pairs in pairs_of(sources).items():
        result[f"overlap_{what}"] = [
            {"pair": list(pair), "mean": sum(each.overlaps[pair] for each in found.values()) / len(found)} for pair in pairs
        ]
    return result | {"overlap_weight_alone": sum(each.weight_alone for each in found.values()) / len(found)}


@dataclass(frozen=True)
class Corners:
    """Of a record: the weights' sha, on what text, and the mass in the 25 % corner by linear."""

    weights_sha: str
    source: str
    mass: dict[str, float]


def read_corners(path: Path) -> Corners:
    """The first source's, of a record of `rsparse analyze importance`. Raises RSparseError for a file that is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config, weights = record["config"], record["metrics"]["by_weight"]
        source = f"{config['data'][0]}, {config['samples'][-1]} × {config['seq_len']} tokens"
        mass = {name: float(each["corners"][0][TOLD]) for name, each in weights.items()}
        return Corners(config["weights_sha"], source, mass)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise RSparseError(f"{path} is not a record of `rsparse analyze importance` ({why})") from error
