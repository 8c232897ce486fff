"""A fit on disk, so that a killed one goes on: where it stands with what Adam knows there, and what was best so far."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rsparse.atomic import disk_errors, new_file
from rsparse.compensation.settings import FitSettings
from rsparse.errors import RSparseError
from rsparse.fingerprint import weights_sha
from rsparse.same import check_same
from rsparse.sparse_model import recipe_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TENSORS = ("values", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class State:
    """The vector after `updates` of it, and Adam's moments."""

    updates: int
    values: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class Best:
    """The state with the smallest mean of the held-out windows' KLs [m], and these."""

    state: State
    kls: Tensor


@dataclass(frozen=True)
class Course:
    """After the check at `step`: the state that the fit goes on from, and the best one so far.

    `halvings` of the rate until then; `history` is the held-out KL at each check.
    """

    step: int
    now: State
    best: Best
    halvings: int
    history: list[tuple[int, float]]


class FitFile:
    """The state of one fit at `path`. Another fit's file is refused, not overwritten."""

    def __init__(
        self,
        path: Path,
        model: PreTrainedModel,
        windows: Tensor,
        heldout: Tensor,
        settings: FitSettings,
        sink_tokens: int,
    ) -> None:
        self.path = path
        texts = hashlib.sha256(windows.cpu().numpy().tobytes() + heldout.cpu().numpy().tobytes()).hexdigest()[:12]
        what = {
            "model": weights_sha(model),
            "recipe": recipe_state(model).recipe.sha(),
            "text": texts,
            "dtype": str(model.dtype),
        }
        self.identity = asdict(settings) | what | {"sink_tokens": sink_tokens}

    def load(self) -> Course | None:
        """What is there, or None. Raises RSparseError where it is of another fit or damaged."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            found = json.loads(meta["fit"])
            history = [(int(step), float(kl)) for step, kl in found["history"]]
            now, best = (State(int(found[part]), *(tensors[f"{part}.{name}"] for name in _TENSORS)) for part in ("now", "best"))
            course = Course(int(found["step"]), now, Best(best, tensors["best.kls"]), int(found["halvings"]), history)
            identity = dict(json.loads(meta["identity"]))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise RSparseError(f"cannot read {self.path}, a fit's state: {str(error).splitlines()[0]}; remove it") from error
        subject = f"{self.path} is the state of another fit"
        check_same(subject, identity, self.identity, {*identity, *self.identity}, "remove it or finish that one")
        return course

    def save(self, course: Course) -> None:
        """Write it, whole or not at all."""
        with disk_errors(self.path.parent), new_file(self.path) as aside:
            states = {"now": course.now, "best": course.best.state}
            found: dict[str, Any] = {"step": course.step, "halvings": course.halvings, "history": course.history}
            tensors = {"best.kls": course.best.kls}
            for part, each in states.items():
                found[part] = each.updates
                # A copy, since `now` may be `best`: safetensors writes no shared memory.
                tensors |= {f"{part}.{name}": getattr(each, name).cpu().clone() for name in _TENSORS}
            save_file(tensors, aside, metadata={"identity": json.dumps(self.identity), "fit": json.dumps(found)})

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
