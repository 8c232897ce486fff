"""What a comparison of the decode step with the modules comes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rsparse.errors import RSparseError
from rsparse.evaluation.paired import bounded_exp, perplexity_ratio

FAR = 10  # times the perplexity: past it, per cent say nothing


@dataclass(frozen=True)
class Parity:
    """By window and token behind the prompt: −log p by the modules [windows, tokens], and for `own_masks` and, of a sparse
    model, `imposed_masks` [3, windows, tokens], −log p by the step, KL(modules ‖ step) and the largest difference of a logit.
    """

    modules: Tensor
    steps: Mapping[str, Tensor]

    def metrics(self) -> dict[str, Any]:
        """The record's. Raises RSparseError where something is not finite, and says by which of the two."""
        if not self.modules.isfinite().all():
            raise RSparseError("the modules' output is not finite on this text")
        if broken := [name for name, notes in self.steps.items() if not notes.isfinite().all()]:
            which = "and ".join(_words(self.steps)[name] for name in broken)
            raise RSparseError(f"the decode steps {which}are broken: their output is not finite where that of the modules is")
        modules = self.modules.double()
        found: dict[str, Any] = {"tokens": modules.numel(), "perplexity_modules": bounded_exp(float(modules.mean()))}
        return found | {name: _against(modules, *notes.double()) for name, notes in self.steps.items()}


def headline(metrics: Mapping[str, Any], backend: str) -> str:
    """One line for the terminal."""
    parts = [f"{words}{_shown(metrics[name])}" for name, words in _words(metrics).items()]
    return f"modules {metrics['perplexity_modules']:.4g}; {backend} steps {'; '.join(parts)} over {metrics['tokens']:,} tokens"


def _words(names: Iterable[str]) -> dict[str, str]:
    """What tells the comparisons apart, in their order; of a dense model there is one."""
    found = {"imposed_masks": "with the modules' masks ", "own_masks": "with their own "}
    return found if "imposed_masks" in names else {"own_masks": ""}


def _against(modules: Tensor, nll: Tensor, kl: Tensor, apart: Tensor) -> dict[str, Any]:
    return {
        "perplexity": bounded_exp(float(nll.mean())),
        "perplexity_ratio": perplexity_ratio(nll.mean(1).tolist(), modules.mean(1).tolist()).to_dict(),
        "kl": float(kl.mean()),
        "max_logit_difference": float(apart.max()),
        "nll_difference_sd": float((nll - modules).std()),
    }


def _shown(step: Mapping[str, Any]) -> str:
    ratio = step["perplexity_ratio"]
    percent, error = 100 * (ratio["value"] - 1), 50 * (ratio["high"] - ratio["low"])
    change = f"{percent:+.2f} % ± {error:.2f}" if ratio["high"] < FAR else f"{ratio['value']:.3g} times"
    return f"{step['perplexity']:.4g} ({change}), KL {max(0.0, step['kl']):.2g}"  # rounding alone can make it negative
