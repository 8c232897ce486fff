"""What a comparison of the decode step with the modules comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rsparse.errors import RSparseError
from rsparse.evaluation.paired import perplexity_ratio


@dataclass(frozen=True)
class Parity:
    """By window and token behind the prompt: −log p by the modules [windows, tokens], and for `own_masks` and, of a sparse
    model, `imposed_masks` [3, windows, tokens], −log p by the step, KL(modules ‖ step) and the largest difference of a logit.
    """

    modules: Tensor
    steps: Mapping[str, Tensor]

    def metrics(self) -> dict[str, Any]:
        """The record's. Raises RSparseError where a model's output is not finite."""
        found: dict[str, Any] = {
            "tokens": self.modules.numel(),
            "perplexity_modules": _perplexity(self.modules, "the modules'"),
        }
        return found | {name: self._step(notes.double()) for name, notes in self.steps.items()}

    def _step(self, notes: Tensor) -> dict[str, Any]:
        nll, kl, apart = notes
        modules = self.modules.double()
        return {
            "perplexity": _perplexity(nll, "the decode step's"),
            "perplexity_ratio": perplexity_ratio(nll.mean(1).tolist(), modules.mean(1).tolist()).to_dict(),
            "kl": float(kl.mean()),
            "max_logit_difference": float(apart.max()),
            "nll_difference_sd": float((nll - modules).std()),
        }


def headline(metrics: Mapping[str, Any], backend: str) -> str:
    """One line for the terminal."""
    names = {"imposed_masks": "with the modules' masks ", "own_masks": "with their own "}
    if "imposed_masks" not in metrics:
        names = {"own_masks": ""}
    parts = [f"{words}{_shown(metrics[name])}" for name, words in names.items()]
    return f"modules {metrics['perplexity_modules']:.4g}; {backend} steps {'; '.join(parts)} over {metrics['tokens']:,} tokens"


def _shown(step: Mapping[str, Any]) -> str:
    ratio = step["perplexity_ratio"]
    percent, error = 100 * (ratio["value"] - 1), 50 * (ratio["high"] - ratio["low"])
    return f"{step['perplexity']:.4g} ({percent:+.2f} % ± {error:.2f}), KL {step['kl']:.2g}"


def _perplexity(nll: Tensor, whose: str) -> float:
    mean = float(nll.double().mean())
    if not math.isfinite(mean):
        raise RSparseError(f"{whose} output is not finite on this text")
    return math.exp(min(mean, 700.0))
