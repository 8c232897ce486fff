"""A Calibration on disk: safetensors by block, one JSON; read block by block."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from rsparse.errors import RSparseError
from rsparse.models.layout import sites
from rsparse.schema import checked_keys

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1
META_FILE = "calibration.json"
WINDOWS_FILE = "windows.safetensors"


@dataclass(frozen=True)
class CalibrationMeta:
    """What the statistics are of. `sites` maps each input site to its in_features."""

    model: str
    model_type: str
    weights_sha: str
    data: str
    tokens: int
    seq_len: int
    sink_tokens: int
    rows: int
    seed: int
    dtype: str
    sites: Mapping[str, int]
    version: int = VERSION

    @property
    def label(self) -> str:
        """For people and records: the text without its folder, and how much of it."""
        return f"{Path(self.data).name if Path(self.data).suffix else self.data}, {self.tokens} tokens"


@dataclass(frozen=True)
class SiteStatistics:
    """One input site: `histogram` [in, bins] int32 counts of |x| by channel, `rows` [n, in] sampled activations."""

    histogram: Tensor
    rows: Tensor


class Calibration:
    """Activation statistics of a dense model, and the token windows that they came from.

    `windows` [n, seq_len] were counted; `heldout` [m, seq_len] were not, and serve to check a sparse model.
    """

    def __init__(self, folder: Path, meta: CalibrationMeta, *, owner: tempfile.TemporaryDirectory[str] | None = None) -> None:
        self.folder = folder
        self.meta = meta
        self._owner = owner  # a calibration that was never asked to stay goes with this object
        tensors = _checked_load(folder / WINDOWS_FILE)
        try:
            self.windows: Tensor = tensors["windows"]
            self.heldout: Tensor = tensors["heldout"]
        except KeyError as error:
            raise _damaged(folder / WINDOWS_FILE, f"no tensor {error}") from None

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Calibration:
        """Open a folder that `calibrate` wrote. Raises RSparseError where it is missing, damaged or of another version."""
        folder = Path(folder)
        try:
            data = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        except OSError:
            raise RSparseError(f"{folder} is not a calibration: it has no readable {META_FILE}") from None
        except ValueError as error:
            raise RSparseError(f"{folder / META_FILE} is not valid JSON, perhaps cut short: {error}") from error
        data = checked_keys(CalibrationMeta, data, str(folder / META_FILE))
        if data["version"] != VERSION:
            raise RSparseError(f"calibration version {data['version']} is not {VERSION}, the one that this rsparse reads")
        return cls(folder, CalibrationMeta(**data))

    def block(self, index: int) -> dict[str, SiteStatistics]:
        """Statistics of one block's sites, by site name."""
        tensors = _checked_load(block_file(self.folder, index))
        names = sorted({key.rpartition(".")[0] for key in tensors})
        try:
            return {name: SiteStatistics(tensors[f"{name}.histogram"], tensors[f"{name}.rows"]) for name in names}
        except KeyError as error:
            raise _damaged(block_file(self.folder, index), f"no tensor {error}") from None

    def histogram(self, index: int, site: str) -> Tensor:
        """One site's histogram without its rows."""
        path = block_file(self.folder, index)
        try:
            with safe_open(path, framework="pt") as file:
                found: Tensor = file.get_tensor(f"{site}.histogram")
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
        return found

    def stamp(self, windows: Tensor) -> str:
        """For settings that are compared: the label, and twelve hex digits over what the statistics are of and `windows`."""
        meta = self.meta
        read = f"{meta.weights_sha} {meta.sink_tokens} {meta.rows} {meta.seed} {windows.tolist()}"
        return f"{meta.label}, {hashlib.sha256(read.encode()).hexdigest()[:12]}"

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises RSparseError where the statistics are of a model of another type or shape."""
        actual = {site.name: site.in_features for block in sites(model) for site in block}
        if self.meta.model_type != model.config.model_type or dict(self.meta.sites) != actual:
            raise RSparseError(
                f"the calibration in {self.folder} is of another model ({self.meta.model}, {self.meta.model_type}); "
                "calibrate this one"
            )


def block_file(folder: Path, index: int) -> Path:
    return folder / f"block-{index:05d}.safetensors"


def meta_json(meta: CalibrationMeta) -> str:
    return json.dumps(dataclasses.asdict(meta), indent=1) + "\n"


def _checked_load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error
    return tensors


def _damaged(path: Path, error: Any) -> RSparseError:
    return RSparseError(f"cannot read {path}, missing or cut short ({str(error).splitlines()[0]}); calibrate again")
