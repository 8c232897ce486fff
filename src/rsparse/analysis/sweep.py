"""Points of a sweep: one model made sparse again and again, its perplexity on one text, each point kept as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from rsparse.analysis.points import Points
from rsparse.analysis.walk import check_dense
from rsparse.calibration.store import Calibration
from rsparse.conversion import sparsify
from rsparse.errors import RSparseError
from rsparse.evaluation.describe import sparse_config
from rsparse.evaluation.perplexity import evaluate
from rsparse.losses import dense_states
from rsparse.methods import MethodSpec, Plan, make_recipe, seeded
from rsparse.recipe import Recipe
from rsparse.sparse_model import check_recipe, densify, is_sparse
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DENSE_STATE_BYTES = 4e9  # dense states that are kept, so that each point spares a dense pass


def method_of(text: str) -> MethodSpec:
    """A method as a sweep takes it. Raises RSparseError for one that does not exist, `dense`, and one that is compensated."""
    spec = MethodSpec.parse(text)
    if spec.name == "dense":
        raise RSparseError("the dense model is measured anyway; name a sparse method")
    if spec.fit is not None:
        raise RSparseError(f"method {text!r} fits a compensation at every point; `rsparse bench quality` measures such")
    return spec


def rho_method(rho: float, criterion: str, fit: str, grouping: str) -> MethodSpec:
    """R-Sparse with one rho for all units."""
    return MethodSpec("rsparse", (("rho", f"{rho:g}"), ("criterion", criterion), ("fit", fit), ("grouping", grouping)))


class Sweep:
    """`model` is dense between two points, or a sparse checkpoint whose recipe all points share."""

    def __init__(
        self, model: PreTrainedModel, windows: Tensor, points: Points, *, policy: TokenPolicy | None = None,
        settle_tokens: int = 8192, seed: int = 0,
    ) -> None:  # fmt: skip
        if len(windows) < 2:
            raise RSparseError(f"the text fills {len(windows)} window of {windows.shape[1]} tokens; give it two or more")
        self.model, self.windows, self.points = model, windows, points
        self.policy, self.settle_tokens, self.seed = policy or TokenPolicy(), settle_tokens, seed
        self._dense: Tensor | None = None

    def dense(self) -> dict[str, Any]:
        """The dense model's point, on the tokens that the token policy scores."""

        def make() -> dict[str, Any]:
            check_dense(self.model)
            return _point(evaluate(self.model, self.windows, self.policy, label="dense").metrics())

        return self.points.get("dense", make)

    def method(self, method: MethodSpec, sparsity: float, calibration: Calibration) -> dict[str, Any]:
        """`method` at `sparsity`, under the sweep's token policy."""

        def make() -> dict[str, Any]:
            options = seeded(method.name, self.seed) | dict(method.options)
            return self._measured(
                make_recipe(self.model, method.name, sparsity, calibration=calibration, **options), calibration
            )

        return self.points.get(f"{method.label}-s{sparsity:g}", make)

    def under(self, policy: TokenPolicy) -> dict[str, Any]:
        """The sparse model as it is, under `policy`."""

        def make() -> dict[str, Any]:
            metrics = evaluate(self.model, self.windows, policy, dense_hidden=self._states(), label=str(policy)[:10])
            return _point(metrics.metrics() | sparse_config(self.model))

        return self.points.get(str(policy).replace(":", "-"), make)

    def _measured(self, recipe: Plan, calibration: Calibration) -> dict[str, Any]:
        states = self._states()
        sparsify(self.model, recipe, calibration, settle_tokens=self.settle_tokens, seed=self.seed)
        try:
            found = evaluate(self.model, self.windows, self.policy, dense_hidden=states, label="eval").metrics()
            return _point(found | sparse_config(self.model))
        finally:
            densify(self.model)

    def _states(self) -> Tensor | None:
        """The dense model's states, where there is room for them."""
        size = self.windows.numel() * int(self.model.config.hidden_size) * self.model.dtype.itemsize
        if self._dense is None and size <= DENSE_STATE_BYTES:
            self._dense = dense_states(self.model, self.windows)
        return self._dense


def apply_recipe(
    model: PreTrainedModel, recipe: Recipe, calibration: Calibration | None, settle_tokens: int, seed: int
) -> None:
    """Make a dense model the sparse one of a recipe. Raises RSparseError where it is sparse already or does not fit."""
    if is_sparse(model):
        raise RSparseError("this model is sparse already; leave --recipe out, or name the dense model")
    check_recipe(model, recipe)
    sparsify(model, recipe, calibration, settle_tokens=settle_tokens, seed=seed)


def _point(metrics: dict[str, Any]) -> dict[str, Any]:
    """What is kept: without the figures by unit, which would be most of the file, and the rates, which nobody asks for."""
    return {
        name: value for name, value in metrics.items() if name != "sparsity_by_unit" and not name.endswith("tokens_per_second")
    }
