"""Finds tile settings for a GPU by measuring: a unit's select and gather at half its channels, weights past L2."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date

import torch
import triton
from torch import Tensor

from rsparse.atomic import write_text
from rsparse.ops.fused.cuda import compiler
from rsparse.ops.fused.cuda.ops import NARROWEST
from rsparse.ops.fused.cuda.stream import covers, stream
from rsparse.ops.fused.matvec import matvec
from rsparse.ops.fused.settings import Tiles, cache_folder, channels_of, document, file_name, gpu_name, key, known, stream_form
from rsparse.ops.fused.timing import copies, microseconds
from rsparse.ops.fused.triton_ops import TritonOps
from rsparse.ops.fused.types import Group, Norm, Section
from rsparse.progress import progress

# (block_n, block_k, warps, stages): 8 to 32 KiB of weight at a time. All shapes share their compiled kernels.
FORMS = (
    (512, 16, 4, 2), (512, 16, 4, 3), (512, 16, 8, 3), (512, 32, 8, 2), (256, 32, 4, 2), (256, 32, 4, 3),
    (256, 16, 4, 4), (256, 64, 8, 2), (128, 64, 4, 3), (128, 32, 4, 4), (1024, 16, 8, 2), (1024, 8, 4, 3),
)  # fmt: skip
TOGETHER = 4  # rows
MATRIX = (
    (128, 64, 4, 3), (128, 64, 4, 4), (64, 64, 4, 4), (64, 128, 4, 3), (128, 32, 4, 4), (256, 32, 8, 3), (128, 64, 8, 3),
    (32, 128, 4, 3),
)  # fmt: skip
HEADS = (
    (8, 512, 4, 3), (16, 512, 4, 3), (16, 256, 4, 4), (4, 1024, 4, 3), (8, 1024, 8, 3), (32, 128, 4, 4), (16, 1024, 8, 2),
    (32, 256, 8, 3),
)  # fmt: skip
# (block_n, warps, loads) of cuda/stream.cu.
STREAMS = (
    (64, 8, 8), (128, 8, 8), (128, 16, 8), (128, 16, 4), (128, 4, 16), (64, 16, 4), (64, 16, 2), (64, 4, 8), (64, 32, 4),
    (32, 16, 4), (32, 8, 8), (32, 32, 2), (16, 16, 4), (16, 8, 8), (16, 32, 2),
)  # fmt: skip
FIRST, OTHERS = 4, (2, 3, 6, 8)  # programs a multiprocessor: tried with every form, then with the best three
FIRST_MATRIX, OTHER_MATRIX = 2, (1, 3, 4)
LEAST = 64  # channels of a segment


def split_for(columns: int, out: int, block_n: int, programs: int) -> int:
    """Segments that make about `programs` programs in all."""
    return max(1, min(columns // LEAST, round(programs / triton.cdiv(out, block_n))))


def best(
    first: Iterable[Tiles], more: Callable[[Tiles], Iterable[Tiles]], time: Callable[[Tiles], float]
) -> tuple[Tiles, float]:
    """The quickest of `first`, and of what `more` makes of the best three of these. What does not run is passed over."""
    times: dict[Tiles, float] = {}

    def measure(tiles: Tiles) -> None:
        if tiles not in times:
            # The error is of too much shared memory, or too many registers, for this GPU.
            with contextlib.suppress(triton.CompilationError, triton.OutOfResources, compiler.CudaError):
                times[tiles] = time(tiles)

    for tiles in first:
        measure(tiles)
    for leader in sorted(times, key=lambda tiles: times[tiles])[:3]:
        for tiles in more(leader):
            measure(tiles)
    winner = min(times, key=lambda tiles: times[tiles])
    return winner, times[winner]


def candidates(kind: str, columns: int, out: int, processors: int) -> tuple[list[Tiles], Callable[[Tiles], list[Tiles]]]:
    """The settings of a group to try first, and those to try after a good one."""
    if kind in ("stream", "paired"):
        fit = [form for form in STREAMS if out % form[0] == 0 and columns <= channels_of(form[1])]
        return [stream_form(*form) for form in fit], lambda tiles: []

    def spread(tiles: Tiles, share: int) -> Tiles:
        return replace(tiles, split=split_for(columns, out, tiles.block_n, share * processors))

    forms, share, others = (MATRIX, FIRST_MATRIX, OTHER_MATRIX) if kind == "rows" else (FORMS, FIRST, OTHERS)
    first = [spread(Tiles(n, k, 1, warps, stages), share) for n, k, warps, stages in forms]
    return first, lambda tiles: [spread(tiles, share) for share in others]


def tune_group(ops: TritonOps, kind: str, columns: int, out: int, dtype: torch.dtype) -> tuple[Tiles, float]:
    """Settings and µs of a group [columns, out] with the norm before it: `dense`, or one of the others at 50 %."""
    device, dense = ops.device, kind == "dense"
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    n = copies(columns * out * dtype.itemsize)
    # N(0, 1) keeps half of its channels at this threshold.
    threshold = torch.full((1,), float("-inf") if dense else 0.6745, device=device)
    weights = [torch.randn(columns, out, device=device, dtype=dtype) for _ in range(n)]
    groups = [Group(weight, None, None, threshold, None, None, (Section(0, out, 0),), dense) for weight in weights]
    x = torch.randn(TOGETHER if kind == "rows" else 1, columns, device=device, dtype=dtype)
    norm = Norm(torch.ones(columns, device=device, dtype=dtype), 1e-6)

    def project(tiles: Tiles, group: Group) -> Tensor:
        if kind in ("stream", "paired"):
            act = "silu" if kind == "paired" else None
            return stream(x, group, group.sections, tiles, ops.workspace, norm=norm, act=act)
        return ops.project_with(tiles, x, group, None, "norm", norm)

    def time(tiles: Tiles) -> float:
        calls = [lambda group=group: project(tiles, group) for group in groups]
        return microseconds(calls)

    return best(*candidates(kind, columns, out, processors), time)


def tune_head(ops: TritonOps, columns: int, out: int, dtype: torch.dtype) -> tuple[Tiles, float]:
    """Settings and µs of the head [out, columns]."""
    weights = [torch.randn(out, columns, device=ops.device, dtype=dtype) for _ in range(copies(columns * out * dtype.itemsize))]
    x = torch.randn(1, columns, device=ops.device, dtype=dtype)
    y = torch.empty(1, out, device=ops.device)

    def time(tiles: Tiles) -> float:
        return microseconds([lambda w=w: matvec(x, w, y, tiles, overlap=ops.overlap) for w in weights], least=4)  # type: ignore[misc]

    forms = [Tiles(n, k, 1, warps, stages) for n, k, warps, stages in HEADS]
    return best(forms, lambda each: (), time)


def tune(
    device: torch.device, shapes: Iterable[tuple[str, int, int]], dtype: torch.dtype = torch.bfloat16
) -> dict[str, tuple[Tiles, float]]:
    """Settings and µs by `settings.key` of each (kind, in, out) of `shapes`; a second or two for each."""
    ops = TritonOps(device)
    wanted, found = sorted(set(shapes)), {}
    with torch.cuda.device(device), progress(len(wanted), "tune", unit="shape") as bar:
        for kind, columns, out in wanted:
            found[key(kind, columns, out)] = (
                tune_head(ops, columns, out, dtype) if kind == "head" else tune_group(ops, kind, columns, out, dtype)
            )
            bar.update()
    return found


def measurement(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """How settings were measured, for their file."""
    return {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "what": f"norm, select and gather of one row (stream, paired: in one launch; rows: norm and product of {TOGETHER} "
        "rows), µs; all but dense and head at 50 %; weights rotated past L2; CUDA graph",
    }


def shapes_of(groups: Iterable[Group], gate_ups: Iterable[Group], lm_head: Tensor) -> set[tuple[str, int, int]]:
    """What `tune` measures for a model's gate|up, its other groups and its head [vocab, hidden]."""
    found = {("head", lm_head.shape[1], lm_head.shape[0])}
    for group, pair in (*((group, False) for group in groups), *((group, True) for group in gate_ups)):
        by_row = group.dense and group.weight.stride(1) != 1
        kinds = ("head",) if by_row else (one_row(group, lm_head.device, paired=pair), "rows")
        found |= {(kind, *group.weight.shape) for kind in kinds}
    return found


def one_row(group: Group, device: torch.device, *, paired: bool) -> str:
    """The kind of settings that one row of the group goes by; `paired` for gate|up with its activation."""
    if group.dense:
        return "dense"
    tiles = stream_form(NARROWEST, 8, 8)
    if compiler.refusal(device) is None:
        if paired and covers(group, tiles, paired=True):
            return "paired"
        if covers(group, tiles):
            return "stream"
    return "gather"


def tune_once(device: torch.device, groups: Iterable[Group], gate_ups: Iterable[Group], lm_head: Tensor) -> None:
    """Measure those of a model's shapes that the GPU has no settings for, and keep them in this machine's cache.

    Takes a minute or so for a model, of compiling for the most part, and nothing where all are known. Where it fails, a warning
    says so and the nearest shape's settings stand, or a rule.
    """
    gpu = gpu_name(device)
    missing = [shape for shape in shapes_of(groups, gate_ups, lm_head) if key(*shape) not in known(gpu)]
    if not missing:
        return
    path = cache_folder() / file_name(gpu)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = tune(device, missing, lm_head.dtype)
        write_text(path, json.dumps(document(gpu, measurement(device, lm_head.dtype), found, path), indent=1) + "\n")
    except Exception as error:  # no memory for test weights, no room on disk, a compiler that fails: decoding does not need it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        instead = "the nearest shape's" if known(gpu) else "a rule"
        warnings.warn(f"no tile settings were measured for {gpu} ({reason[:200]}); kernels go by {instead}", stacklevel=2)
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    known.cache_clear()
