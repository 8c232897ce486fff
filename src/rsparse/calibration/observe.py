"""Run a dense model block by block over text, and write down what its linears see."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rsparse.atomic import check_target, disk_errors, new_folder, write_text
from rsparse.calibration.histogram import CHANNEL_BINS, channel_histogram
from rsparse.calibration.store import META_FILE, WINDOWS_FILE, Calibration, CalibrationMeta, block_file, meta_json
from rsparse.calibration.text import TextSource
from rsparse.calibration.windows import make_windows
from rsparse.errors import RSparseError
from rsparse.fingerprint import weights_sha
from rsparse.models.layout import Site, check_positions, sites
from rsparse.models.stepper import BlockStepper
from rsparse.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 4096
HELDOUT_WINDOWS = 8


def calibrate(
    model: PreTrainedModel,
    tokenizer: Any,
    data: str,
    *,
    out: Path | str | None = None,
    tokens: int = 32768,
    seq_len: int = 512,
    rows: int = 4096,
    sink_tokens: int = 1,
    seed: int = 0,
    name: str = "",
    overwrite: bool = False,
) -> Calibration:
    """Collect histograms of |x| by channel and a sample of `rows` activation rows at every input site.

    `data` is a TextSource name. `tokens` are cut into windows of `seq_len`, of which up to 8 more are held
    out for checks. Streams block by block; between blocks the hidden states wait on disk, so memory holds
    the model and one block's statistics, whatever `tokens` is. `out` keeps the result; without it, it
    lives as long as the returned object. Raises RSparseError on too little text and on activations that
    are not finite.
    """
    if getattr(model, "rsparse", None) is not None:
        raise RSparseError("calibrate needs the dense model; this one is sparse")
    if seq_len < 2:
        raise RSparseError(f"seq_len must be at least 2 tokens, got {seq_len}")
    if tokens < seq_len or rows < 1:
        raise RSparseError(f"calibrate needs at least one window of {seq_len} tokens and one row; got {tokens} and {rows}")
    if not 0 <= sink_tokens < seq_len:
        raise RSparseError(f"sink_tokens must be from 0 to below the window's {seq_len} tokens, got {sink_tokens}")
    if out is not None:
        check_target(Path(out), overwrite=overwrite)
    sites(model)  # an architecture that is not known is told before the text is read
    wanted = tokens // seq_len
    heldout = min(HELDOUT_WINDOWS, max(1, wanted // 4))
    windows = make_windows(TextSource(data).documents(), tokenizer, seq_len, max_windows=wanted + heldout, source=data)
    if len(windows) < 2:
        raise RSparseError(f"{data} fills {len(windows)} window of {seq_len} tokens; calibration needs two, one to check with")
    check_positions(model, seq_len, f"windows of {seq_len} tokens")
    heldout = min(heldout, max(1, len(windows) // 5))
    return calibrate_windows(
        model, windows[:-heldout], windows[-heldout:], data=data, out=out, rows=rows, sink_tokens=sink_tokens, seed=seed,
        name=name, overwrite=overwrite,
    )  # fmt: skip


def calibrate_windows(
    model: PreTrainedModel,
    windows: Tensor,
    heldout: Tensor,
    *,
    data: str,
    out: Path | str | None = None,
    rows: int = 4096,
    sink_tokens: int = 1,
    seed: int = 0,
    name: str = "",
    overwrite: bool = False,
) -> Calibration:
    """`calibrate` on token ids: `windows` [n, seq_len] are counted, `heldout` [m, seq_len] kept beside; `data` names them."""
    layout, seq_len = sites(model), windows.shape[1]
    meta = CalibrationMeta(
        model=name or model.config.name_or_path or "",
        model_type=model.config.model_type,
        weights_sha=weights_sha(model),
        data=data,
        tokens=windows.numel(),
        seq_len=seq_len,
        sink_tokens=sink_tokens,
        rows=min(rows, len(windows) * (seq_len - sink_tokens)),
        seed=seed,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        sites={site.name: site.in_features for block in layout for site in block},
    )
    owner = tempfile.TemporaryDirectory(prefix="rsparse-calibration-") if out is None else None
    target = Path(owner.name) / "calibration" if owner is not None else Path(str(out))
    with new_folder(target, overwrite=overwrite) as staging:
        save_file({"windows": windows.contiguous(), "heldout": heldout.clone()}, staging / WINDOWS_FILE)
        _observe(model, layout, windows, meta, staging)
        write_text(staging / META_FILE, meta_json(meta))
    return Calibration(target, meta, owner=owner)


def disk_bytes(meta_sites: dict[str, int], rows: int) -> int:
    """What a calibration will take on disk: 16-bit rows and 32-bit counts."""
    return sum(size * (2 * rows + 4 * CHANNEL_BINS) for size in meta_sites.values())


@torch.no_grad()
def _observe(model: PreTrainedModel, layout: list[list[Site]], windows: Tensor, meta: CalibrationMeta, folder: Path) -> None:
    device = next(model.parameters()).device
    stepper = BlockStepper(model)
    batch = max(1, BATCH_TOKENS // meta.seq_len)
    sample = _sampled_rows(len(windows), meta)
    with (
        progress(len(layout) * len(windows), "calibrate", unit="window") as bar,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):
        hidden = _enter(stepper, windows, batch, device, Path(scratch) / "hidden")
        for index, block_sites in enumerate(layout):
            observers = [_SiteObserver(site, meta, sample) for site in block_sites]
            handles = [observer.attach() for observer in observers]
            try:
                for start in range(0, len(windows), batch):
                    states = hidden[start : start + batch].to(device)
                    for observer in observers:
                        observer.start = start
                    hidden[start : start + batch] = stepper.run(index, states).to(hidden.device)
                    bar.update(len(states))
            finally:
                for handle in handles:
                    handle.remove()
            tensors = {}
            for observer in observers:
                tensors[f"{observer.site.name}.histogram"] = observer.histogram.to(torch.int32).cpu()
                tensors[f"{observer.site.name}.rows"] = torch.cat(observer.rows)
            save_file(tensors, block_file(folder, index))


def _enter(stepper: BlockStepper, windows: Tensor, batch: int, device: torch.device, path: Path) -> Tensor:
    """All windows' inputs to the first block, [windows, tokens, hidden], in a file mapped into memory."""
    hidden: Tensor | None = None
    for start in range(0, len(windows), batch):
        states = stepper.enter(windows[start : start + batch].to(device))
        if hidden is None:
            hidden = _mapped(path, (len(windows), *states.shape[1:]), states.dtype)
        hidden[start : start + batch] = states.to(hidden.device)
    assert hidden is not None
    return hidden


def _mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in a file. The room is taken first: a full disk would otherwise be a bus error on some later write."""
    count = math.prod(shape)
    with disk_errors(path.parent), path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)


def _sampled_rows(count: int, meta: CalibrationMeta) -> list[Tensor]:
    """For each window, the sorted positions whose activations are kept; the same for every site."""
    body = meta.seq_len - meta.sink_tokens
    generator = torch.Generator().manual_seed(meta.seed)
    chosen = torch.randperm(count * body, generator=generator)[: meta.rows].sort().values
    return [chosen[(chosen // body) == window] % body + meta.sink_tokens for window in range(count)]


class _SiteObserver:
    """Collects one site's statistics while its first linear is called."""

    def __init__(self, site: Site, meta: CalibrationMeta, sample: list[Tensor]) -> None:
        self.site = site
        self.meta = meta
        self.sample = sample
        self.start = 0
        self.histogram = torch.zeros(site.in_features, CHANNEL_BINS, dtype=torch.int64, device=site.first.weight.device)
        self.rows: list[Tensor] = []

    def attach(self) -> Any:
        return self.site.first.register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0]  # [batch, tokens, in]
        if not bool(x.isfinite().all()):
            raise RSparseError(
                f"activations at {self.site.name} are not finite in {x.dtype}; try --dtype float32 or check the weights"
            )
        self.histogram += channel_histogram(x[:, self.meta.sink_tokens :].flatten(0, 1))
        for window, states in enumerate(x, self.start):
            self.rows.append(states[self.sample[window].to(x.device)].to(torch.bfloat16).cpu())
