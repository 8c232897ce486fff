"""stream() with stream.cu built for the CPU, in every kind of input and of group."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("triton")

from rsparse.ops.fused.cuda import stream as module
from rsparse.ops.fused.cuda.stream import covers, stream
from rsparse.ops.fused.reference import ReferenceOps, act_mul, keep, rms_norm
from rsparse.ops.fused.settings import stream_form
from rsparse.ops.fused.triton_ops import merged
from tests.ops.fused import problems
from tests.ops.fused.cuda import on_cpu
from tests.ops.fused.interpreted_kernels import Poisoned
from tests.support.tolerance import assert_close_rms

pytestmark = pytest.mark.skipif(on_cpu.COMPILER is None, reason="no g++ to build stream.cu for the CPU")

CPU, INFINITY = torch.device("cpu"), float("inf")
BF16, FP16 = torch.bfloat16, torch.float16
KINDS = ("plain", "norm", "plus_one", "silu", "gelu_tanh")


def padded(tensor, room=8):
    """The same [rows, columns] in the midst of NaN."""
    rows, columns = tensor.shape
    wide = torch.full((rows + 2, columns + 2 * room), float("nan"), dtype=tensor.dtype)
    wide[1:-1, room:-room] = tensor
    return wide[1:-1, room:-room]


@dataclass(frozen=True)
class Problem:
    """`kind` is what comes before the linear; tiles are (block_n, warps, loads)."""

    kind: str
    dtype: torch.dtype
    columns: int
    outs: tuple[int, ...]
    masks: tuple[int, ...]
    rank: int = 0
    tiles: tuple[int, int, int] = (16, 1, 2)
    scaled: bool = True
    extras: bool = True  # bias and add

    def __str__(self):
        return f"{self.kind}-{self.columns}-{self.outs}-rank{self.rank}"

    def x(self):
        gated = self.kind in ("silu", "gelu_tanh")
        return padded(problems.random(9)(1, self.columns * (2 if gated else 1)).to(self.dtype))

    def norm(self):
        normed = self.kind in ("norm", "plus_one")
        made = problems.norm(self.columns, self.dtype, plus_one=self.kind == "plus_one")
        return replace(made, eps=0.1) if normed else None

    def add(self):
        return problems.random(5)(1, sum(self.outs)).to(self.dtype) if self.extras else None

    def read(self):
        """What the linear reads, by the reference."""
        if self.norm() is not None:
            return rms_norm(self.x(), self.norm())
        return self.x() if self.kind == "plain" else act_mul(self.x(), self.kind)

    def group(self):
        """With thresholds in wide gaps of the scores, so that a last bit of what is read moves no channel."""
        made = problems.group(
            self.columns, self.outs, self.masks, self.rank, self.dtype, scaled=self.scaled, bias=self.extras
        )  # fmt: skip
        scores = self.read().abs().float() * (1 if made.channel_scale is None else made.channel_scale)
        middle = scores.sort(-1).values[:, self.columns // 3 : self.columns * 2 // 3]
        widest = middle.diff().argmax(-1, keepdim=True)
        threshold = (middle.gather(1, widest) + middle.gather(1, widest + 1))[:, 0] / 2
        return replace(
            made, threshold=threshold.expand_as(made.threshold).clone(), weight=padded(made.weight),
            U=None if made.U is None else padded(made.U),
        )  # fmt: skip

    def run(self, group=None, x=None):
        """y of stream(), whose scratch was NaN and whose counters must be back at 0."""
        group, x = self.group() if group is None else group, self.x() if x is None else x
        tiles, workspace = stream_form(*self.tiles), Poisoned(CPU)
        assert covers(group, tiles)
        kind = "norm" if self.kind == "plus_one" else self.kind
        y = stream(x, group, merged(group), tiles, workspace, kind=kind, norm=self.norm(), add=self.add())
        workspace.counters(2)
        return y


def one_hot(kind, dtype, scaled):
    return Problem(kind, dtype, 576, (576, 576), (0, 1), 576, (64, 2, 3), scaled, extras=False)


NUMERIC = [
    Problem("plain", BF16, 48, (16,), (0,)),
    Problem("plain", FP16, 8, (8,), (0,), 3, (8, 1, 1), scaled=False, extras=False),
    Problem("norm", BF16, 600, (64, 32), (0, 1), 5, (32, 2, 4)),
    Problem("norm", FP16, 264, (48, 16, 16), (2, 0, 1), 40, (16, 1, 3)),
    Problem("plus_one", BF16, 136, (16, 32, 16), (0, 0, 1), 20),
    Problem("plus_one", FP16, 136, (16, 32, 16), (0, 0, 1)),
    Problem("silu", FP16, 520, (128,), (0,), 136, (128, 4, 1)),
    Problem("gelu_tanh", BF16, 296, (32, 64, 32), (1, 1, 1), 0, (32, 1, 1), scaled=False),
    Problem("plain", BF16, 40, (256,), (0,), 8, (256, 8, 2)),
]
MASKS = [one_hot(kind, dtype, scaled) for kind in KINDS for dtype, scaled in ((BF16, True), (FP16, False))]


class Unbuilt:
    """A kernel that computes nothing."""

    def launch(self, blocks, values, types, device):
        pass


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Those that all problems ask for, compiled together."""
    made, wanted = on_cpu.Kernels(tmp_path_factory.mktemp("kernels")), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "compiled", lambda code, constants, arch: wanted.append(constants))
        patch.setattr(module, "load", lambda *arguments: Unbuilt())
        patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        for problem in NUMERIC + MASKS:
            problem.run()
    made.build(wanted)
    return made


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch, kernels):
    """stream() as it is, down to the call of the kernel. Outputs start as NaN, as deterministic torch fills new memory."""

    def load(constants, name, threads, shared, device):
        assert name == "stream"
        assert shared == 4 * constants["COLUMNS"], "an entry of the list is 4 bytes"
        return kernels.kernel(constants, threads)

    monkeypatch.setattr(module, "compiled", lambda code, constants, arch: constants)
    monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    module._kernel.cache_clear()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    module._kernel.cache_clear()


@pytest.mark.parametrize("problem", NUMERIC, ids=str)
def test_it_computes_what_the_reference_does(problem):
    group = problem.group()
    for each in (
        group,
        replace(group, threshold=torch.full_like(group.threshold, -INFINITY)),
        replace(group, threshold=torch.full_like(group.threshold, INFINITY)),
    ):
        assert_close_rms(problem.run(each), ReferenceOps().project(problem.read(), each, problem.add()), problem.dtype)


@pytest.mark.parametrize("problem", MASKS, ids=lambda problem: f"{problem.kind}-{problem.dtype}")
def test_masks_bit_for_bit(problem):
    """By one-hot W, U and V, y is what a mask keeps, and half of what it drops. At the threshold is not above it."""
    columns, eye = problem.columns, torch.eye(problem.columns, dtype=problem.dtype).repeat(1, 2)
    group = replace(problem.group(), weight=eye, U=eye / 2, V=eye)
    every = problem.run(replace(group, threshold=torch.full_like(group.threshold, -INFINITY)))
    read = every[:, :columns]
    assert_close_rms(read, problem.read(), problem.dtype)
    assert (read != problem.read()).float().mean() < 0.01, "roundings, but for a last bit of a sum"
    scores = read.abs().float() * (1 if group.channel_scale is None else group.channel_scale)
    group = replace(group, threshold=scores.expand(2, -1).sort(-1).values[range(2), [200, 350]])
    kept = torch.cat([keep(read, group, mask) for mask in problem.masks], 1)
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(problem.run(group), torch.where(kept, every, every / 2))


@pytest.mark.parametrize("problem", [NUMERIC[2], NUMERIC[6]], ids=str)
def test_the_same_bits_in_any_order_of_threads(problem, monkeypatch):
    expected = problem.run()
    assert torch.equal(problem.run(), expected)
    monkeypatch.setattr(on_cpu.Kernel, "backwards", True)
    assert torch.equal(problem.run(), expected)


@pytest.mark.parametrize("problem", MASKS[-4::2], ids=lambda problem: problem.kind)
def test_activations_do_not_overflow(problem):
    """Where exp of a gate is infinite."""
    x, eye = problem.x(), torch.eye(problem.columns, dtype=problem.dtype).repeat(1, 2)
    x[0, :6] = torch.tensor([-300.0, -90.0, -20.0, 20.0, 90.0, 300.0])
    group = replace(problem.group(), weight=eye, threshold=torch.full((2,), -INFINITY))
    y = problem.run(group, x)[:, : problem.columns]
    assert_close_rms(y, act_mul(x, problem.kind), problem.dtype)


def test_a_kernel_is_loaded_once(monkeypatch):
    loads = []
    load = module.load
    monkeypatch.setattr(module, "load", lambda *arguments: loads.append(arguments) or load(*arguments))
    for _ in range(2):
        NUMERIC[0].run()
    NUMERIC[1].run()
    assert len(loads) == 2
