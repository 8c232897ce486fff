"""A fit on disk, so that a killed one goes on: what Adam knows, and what was best so far."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rsparse.atomic import disk_errors, new_file
from rsparse.compensation.settings import FitSettings
from rsparse.errors import RSparseError
from rsparse.fingerprint import weights_sha
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
class Saved:
    """After the check at `step`: the best state so far, from which the fit goes on, and the held-out KL at each check."""

    step: int
    best: State
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
        self.identity = json.dumps(asdict(settings) | what | {"sink_tokens": sink_tokens}, sort_keys=True)

    def load(self) -> Saved | None:
        """What is there, or None. Raises RSparseError where it is of another fit or damaged."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
            found = json.loads(meta["fit"])
            history = [(int(step), float(kl)) for step, kl in found["history"]]
            saved = Saved(int(found["step"]), State(int(found["updates"]), **tensors), history)
            identity = meta["identity"]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise RSparseError(f"cannot read {self.path}, a fit's state: {str(error).splitlines()[0]}; remove it") from error
        if identity != self.identity:
            raise RSparseError(
                f"{self.path} is the state of another fit (model, text or settings); remove it or finish that one"
            )
        return saved

    def save(self, saved: Saved) -> None:
        """Write it, whole or not at all."""
        with disk_errors(self.path.parent), new_file(self.path) as aside:
            found = {"step": saved.step, "updates": saved.best.updates, "history": saved.history}
            tensors = {name: getattr(saved.best, name).cpu() for name in _TENSORS}
            save_file(tensors, aside, metadata={"identity": self.identity, "fit": json.dumps(found)})

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
