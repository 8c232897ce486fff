"""Methods: presets and baselines, one a file, found by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from rsparse.gated.plan import GatedPlan
from rsparse.methods._registry import check, load, makes_recipe, names, observes, resumes, seeded
from rsparse.methods._spec import MethodSpec
from rsparse.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from rsparse.calibration.store import Calibration

__all__ = ["Method", "MethodSpec", "Plan", "check", "make_recipe", "makes_recipe", "names", "observes", "resumes", "seeded"]

Plan = Recipe | GatedPlan


class Method(Protocol):
    """The function `prepare` of a method's file, or of an entry point in the group `rsparse.methods`.

    One that looks at activations also takes `calibration`, and one that can go on after a kill `state_file`: either may be
    None. One whose masks are not the linears' own inputs returns a GatedPlan and says so in its annotation;
    `conversion.sparsify` takes both.
    """

    def __call__(self, model: PreTrainedModel, sparsity: float, **options: Any) -> Plan:
        """A recipe for `model` at `sparsity` of the bytes of its blocks' linears."""


def make_recipe(
    model: PreTrainedModel,
    method: str,
    sparsity: float,
    *,
    calibration: Calibration | None = None,
    state_file: Path | None = None,
    **options: Any,
) -> Plan:
    """`method`'s recipe, or plan, for `model`. Options may be strings, as a command line has them.

    `calibration` goes to methods that take one. So does `state_file`, where such a method keeps what it has measured: if the
    file is there, it goes on from it; to remove it is the caller's. Raises RSparseError for a method, option, value or level
    that does not exist, where a method needs a calibration and has none, and for the state of another recipe.
    """
    given = check(method, sparsity, options)
    if observes(method):
        given["calibration"] = calibration
    if resumes(method):
        given["state_file"] = state_file
    prepare: Method = load(method).prepare
    return prepare(model, sparsity, **given)
