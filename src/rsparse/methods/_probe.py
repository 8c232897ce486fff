"""One decoder block with its linears' inputs masked at trial levels: the error at its output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsparse import criteria
from rsparse.calibration.histogram import channel_edges
from rsparse.models.layout import Site
from rsparse.models.stepper import BlockStepper
from rsparse.ops import reference

# Points of a threshold curve in an octave: twice as fine as the histograms' bins.
_PER_OCTAVE = 16
LAST_FRACTION = 0.25


@dataclass(frozen=True)
class ProbedUnit:
    """A unit of the block: its linears by full name, its site's place in the block, scale c, and threshold curve."""

    name: str
    linears: Mapping[str, nn.Linear]
    site: int
    scale: Tensor | None
    curve: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, name: str, linears: Mapping[str, nn.Linear], site: int, criterion: str, histogram: Tensor) -> ProbedUnit:
        """`histogram` [in, bins] counts |x| at the unit's site."""
        weight = torch.cat([linear.weight.detach() for linear in linears.values()])
        scale = criteria.channel_scale(criterion, weight, weight, 0)
        return cls(name, linears, site, scale, threshold_curve(histogram.to(weight.device), scale))

    @property
    def size(self) -> int:
        return sum(linear.weight.numel() for linear in self.linears.values())

    def threshold(self, level: float) -> float:
        """The t that drops `level` of all channels."""
        return float(np.interp(level, *self.curve))


def threshold_curve(histogram: Tensor, c: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """(dropped share, t), both ascending, of the score |x|·c from counts [in, bins]; linear inside a bin.

    `calibration.histogram.lookup_threshold` bisects over all channels for one level; the greedy needs hundreds.
    """
    edges = channel_edges(histogram.device)
    if c is None:
        histogram, cuts = histogram.sum(0, keepdim=True), edges[None]  # all channels are cut at the same |x|
        thresholds = edges
    else:
        c = c.clamp_min(float(c.max()) * 1e-6 + 1e-30)
        low, high = float((edges[1] * c.min()).log2()), float((edges[-1] * c.max()).log2())
        count = int((high - low) * _PER_OCTAVE) + 2
        thresholds = torch.cat([edges[:1], torch.logspace(low, high, count, base=2.0, device=c.device)])
        cuts = thresholds / c[:, None]  # [in, points]
    counts = histogram.float()
    below = F.pad(counts.cumsum(1), (1, 0))  # [in, bins + 1]: counts under each edge
    place = (torch.searchsorted(edges, cuts.contiguous(), right=True) - 1).clamp(0, histogram.shape[1] - 1)
    inside = ((cuts - edges[place]) / (edges[place + 1] - edges[place])).clamp(0, 1)
    dropped = (below.gather(1, place) + inside * counts.gather(1, place)).double().sum(0) / counts.double().sum()
    return dropped.cpu().numpy(), thresholds.double().cpu().numpy()


class BlockProbe:
    """Squared errors of a block's output when its units run at given levels, from dense hidden states.

    Tokens before `sink_tokens` stay dense. What a raise cannot reach is not run again: modules and linears before
    the raised unit's site give back what they gave at the accepted levels. The modules behind the first one that
    reads the block's input (the MLP) treat each token by itself, so they run on the counted tokens only.
    """

    def __init__(
        self,
        block: nn.Module,
        prefix: str,
        sites: list[Site],
        units: list[ProbedUnit],
        stepper: BlockStepper,
        index: int,
        hidden: Tensor,
        sink_tokens: int,
    ) -> None:
        self.units = {unit.name: unit for unit in units}
        self.sink_tokens = sink_tokens
        self._run = lambda: stepper.run(index, hidden)
        self._unit_of = {name: unit for unit in units for name in unit.linears}
        self._linears = {name: linear for site in sites for name, linear in site.linears.items()}
        self._site_of = {name: index for index, site in enumerate(sites) for name in site.linears}
        # The block's own children that hold linears, in the order of execution, with their last site.
        self._child_last: dict[str, int] = {}
        for name, site in self._site_of.items():
            self._child_last[name.removeprefix(f"{prefix}.").partition(".")[0]] = site
        self._children = {name: block.get_submodule(name) for name in self._child_last}
        self._first_child = next(iter(self._children))
        self._levels = {unit.name: 0.0 for unit in units}
        self._kept: dict[str, Any] = {}
        self._fresh: dict[str, Any] = {}
        self._trials: dict[str, dict[str, Any]] = {}
        self._raised: ProbedUnit | None = None
        self.dense = self._run()  # [windows, tokens, hidden]
        self.first = max(int(hidden.shape[1] * (1 - LAST_FRACTION)), sink_tokens)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Stand in for the forward of the block's linears and children, and put theirs back whatever happens."""
        with ExitStack() as stack:
            for name, child in self._children.items():
                stack.enter_context(_standing_in(child, self._child_forward(name, child.forward)))
            for name, linear in self._linears.items():
                stack.enter_context(_standing_in(linear, self._linear_forward(name, linear.forward)))
            self._run()
            self._kept = self._fresh
            yield

    def squared_error(self, name: str, level: float) -> Tensor:
        """Σ over the counted tokens of (sparse − dense)², [windows, hidden], with unit `name` raised to `level`."""
        before, self._raised, self._fresh = self._levels[name], self.units[name], {}
        self._levels[name] = level
        try:
            out = self._run()
        finally:
            self._levels[name], self._raised = before, None
        self._trials[name] = self._fresh
        return (out[:, self.first :].float() - self.dense[:, self.first :].float()).square().sum(1)

    def accept(self, name: str, level: float) -> None:
        """Keep the raise that `squared_error` tried last for this unit."""
        self._levels[name] = level
        self._kept.update(self._trials[name])
        self._trials.clear()

    def _linear_forward(self, name: str, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        unit, site = self._unit_of[name], self._site_of[name]
        has_sinks = self._linears[name] in set(self._children[self._first_child].modules())

        def masked(x: Tensor) -> Tensor:
            raised = self._raised
            if raised is not None and raised is not unit and site <= raised.site:
                return self._kept[name]
            if level := self._levels[unit.name]:
                m = reference.keep_mask(x, unit.scale, unit.threshold(level))
                if has_sinks:  # behind the first child only counted tokens are run, and no sink is one
                    m[:, : self.sink_tokens] = True
                x = torch.where(m, x, 0)
            self._fresh[name] = out = forward(x)
            return out

        return masked

    def _child_forward(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def partly(*args: Any, **kwargs: Any) -> Any:
            if self._raised is not None and self._child_last[name] < self._raised.site:
                return self._kept[name]
            if name == self._first_child:
                out = forward(*args, **kwargs)
            else:
                x = args[0]
                out = torch.zeros_like(x)
                out[:, self.first :] = forward(x[:, self.first :], *args[1:], **kwargs)
            self._fresh[name] = out
            return out

        return partly


@contextmanager
def _standing_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`forward` instead of the module's own, which an instance may shadow already (accelerate's hooks do)."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
