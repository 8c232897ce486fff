"""stream() with stream.cu built for the CPU, in every kind of input and of group."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("triton")

from rsparse.ops.fused.cuda import stream as module
from rsparse.ops.fused.cuda.stream import covers, stream
from rsparse.ops.fused.reference import ReferenceOps, act_mul, rms_norm
from rsparse.ops.fused.settings import stream_form
from rsparse.ops.fused.triton_ops import merged
from tests.ops.fused import problems
from tests.ops.fused.cuda import on_cpu
from tests.ops.fused.cuda.one_hot import assert_masks, at_scores, one_hot
from tests.ops.fused.interpreted_kernels import Poisoned
from tests.support.tolerance import assert_close_rms

pytestmark = pytest.mark.skipif(on_cpu.COMPILER is None, reason="no g++ to build stream.cu for the CPU")

CPU, INFINITY = torch.device("cpu"), float("inf")
BF16, FP16 = torch.bfloat16, torch.float16
KINDS = ("plain", "norm", "plus_one")


def padded(tensor, room=8):
    """The same [rows, columns] in the midst of NaN."""
    rows, columns = tensor.shape
    wide = torch.full((rows + 2, columns + 2 * room), float("nan"), dtype=tensor.dtype)
    wide[1:-1, room:-room] = tensor
    return wide[1:-1, room:-room]


@dataclass(frozen=True)
class Problem:
    """`kind` is what comes before the linear, `act` what comes after gate|up; tiles are (block_n, warps, loads)."""

    kind: str
    dtype: torch.dtype
    columns: int
    outs: tuple[int, ...]
    masks: tuple[int, ...]
    rank: int = 0
    tiles: tuple[int, int, int] = (16, 1, 2)
    scaled: bool = True
    extras: bool = True  # bias, and add but for a pair
    act: str | None = None

    def __str__(self):
        return f"{self.kind}-{self.columns}-{self.outs}-rank{self.rank}{'-' + self.act if self.act else ''}"

    def x(self):
        return padded(problems.random(9)(1, self.columns).to(self.dtype))

    def norm(self):
        normed = self.kind in ("norm", "plus_one")
        made = problems.norm(self.columns, self.dtype, plus_one=self.kind == "plus_one")
        return replace(made, eps=0.1) if normed else None

    def add(self):
        return problems.random(5)(1, sum(self.outs)).to(self.dtype) if self.extras and not self.act else None

    def read(self):
        """What the linear reads, by the reference."""
        return self.x() if self.norm() is None else rms_norm(self.x(), self.norm())

    def reference(self, group):
        y = ReferenceOps().project(self.read(), group, self.add())
        return y if self.act is None else act_mul(y, self.act)

    def group(self):
        """With a threshold for each mask, in a wide gap of the scores, so that a last bit of what is read moves no channel."""
        made = problems.group(
            self.columns, self.outs, self.masks, self.rank, self.dtype, scaled=self.scaled, bias=self.extras
        )  # fmt: skip
        scores = self.read().abs().float() * (1 if made.channel_scale is None else made.channel_scale)
        threshold = []
        for mask, row in enumerate(scores.expand(len(made.threshold), -1).sort(-1).values):
            middle = row[self.columns * (2 + 2 * mask) // 9 : self.columns * (4 + 2 * mask) // 9]
            widest = middle.diff().argmax()
            threshold.append(middle[widest : widest + 2].mean())
        return replace(
            made, threshold=torch.stack(threshold), weight=padded(made.weight),
            U=None if made.U is None else padded(made.U),
        )  # fmt: skip

    def run(self, group=None, x=None):
        """y of stream(), whose scratch was NaN and whose counters must be back at 0."""
        group, x = self.group() if group is None else group, self.x() if x is None else x
        tiles, workspace = stream_form(*self.tiles), Poisoned(CPU)
        assert covers(group, tiles, paired=self.act is not None)
        y = stream(x, group, merged(group), tiles, workspace, norm=self.norm(), add=self.add(), act=self.act)
        workspace.counters(2)
        return y


def of_one_hots(kind, dtype, scaled):
    return Problem(kind, dtype, 576, (576, 576), (0, 1), 576, (64, 2, 3), scaled, extras=False)


NUMERIC = [
    Problem("plain", BF16, 48, (16,), (0,)),
    Problem("plain", FP16, 8, (8,), (0,), 3, (8, 1, 1), scaled=False, extras=False),
    Problem("norm", BF16, 600, (64, 32), (0, 1), 5, (32, 2, 4)),
    Problem("norm", FP16, 264, (48, 16, 16), (2, 0, 1), 40, (16, 1, 3)),
    Problem("plus_one", BF16, 136, (16, 32, 16), (0, 0, 1), 20),
    Problem("plus_one", FP16, 136, (16, 32, 16), (0, 0, 1)),
    Problem("plain", FP16, 520, (128,), (0,), 136, (128, 4, 1)),
    Problem("plain", BF16, 296, (32, 64, 32), (1, 1, 1), 0, (32, 1, 1), scaled=False),
    Problem("plain", BF16, 40, (256,), (0,), 8, (256, 8, 2)),
]
PAIRED = [
    Problem("norm", BF16, 264, (48, 48), (0, 0), 0, (32, 1, 2), act="silu"),
    Problem("plus_one", FP16, 136, (40, 40), (0, 1), 0, (16, 1, 3), scaled=False, extras=False, act="gelu_tanh"),
    Problem("norm", BF16, 600, (64, 64), (1, 0), 20, (64, 2, 4), act="silu"),
    Problem("plain", FP16, 136, (32, 32), (0, 0), 40, (32, 2, 1), act="silu"),
    Problem("plain", BF16, 264, (96,), (0,), 12, (32, 1, 2), act="gelu_tanh"),
]
ONE_HOT_PAIRS = [
    replace(of_one_hots("norm", BF16, True), masks=masks, extras=True, act="silu") for masks in ((0, 0), (0, 1), (1, 0))
]
MASKS = [of_one_hots(kind, dtype, scaled) for kind in KINDS for dtype, scaled in ((BF16, True), (FP16, False))]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Those that all problems ask for, compiled together."""
    made, wanted = on_cpu.Kernels(tmp_path_factory.mktemp("kernels")), []
    with pytest.MonkeyPatch.context() as patch:
        on_cpu.stand_in(patch, module, wanted.append, lambda *arguments: on_cpu.Unbuilt())
        for problem in NUMERIC + MASKS + PAIRED + ONE_HOT_PAIRS:
            problem.run()
    made.build(wanted)
    return made


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch, kernels):
    """stream() as it is, down to the call of the kernel. Outputs start as NaN, as deterministic torch fills new memory."""

    def load(constants, name, threads, shared, device):
        assert name == "stream"
        assert shared == 4 * constants["COLUMNS"] * constants["LISTS"], "an entry of a list is 4 bytes"
        return kernels.kernel(constants, threads)

    on_cpu.stand_in(monkeypatch, module, lambda constants: constants, load)
    module._kernel.cache_clear()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    module._kernel.cache_clear()


@pytest.mark.parametrize("problem", NUMERIC + PAIRED, ids=str)
def test_it_computes_what_the_reference_does(problem):
    group = problem.group()
    for each in (
        group,
        replace(group, threshold=torch.full_like(group.threshold, -INFINITY)),
        replace(group, threshold=torch.full_like(group.threshold, INFINITY)),
    ):
        assert_close_rms(problem.run(each), problem.reference(each), problem.dtype)


@pytest.mark.parametrize("problem", MASKS, ids=lambda problem: f"{problem.kind}-{problem.dtype}")
def test_masks_bit_for_bit(problem):
    assert_masks(problem.run, problem.group(), problem.read())


@pytest.mark.parametrize("problem", [NUMERIC[2], NUMERIC[6], PAIRED[2]], ids=str)
def test_the_same_bits_in_any_order_of_threads(problem, monkeypatch):
    expected = problem.run()
    assert torch.equal(problem.run(), expected)
    monkeypatch.setattr(on_cpu.Kernel, "backwards", True)
    assert torch.equal(problem.run(), expected)


@pytest.mark.parametrize("problem", ONE_HOT_PAIRS, ids=lambda problem: str(problem.masks))
def test_a_pair_is_the_activation_of_what_gate_and_up_give(problem):
    """Element by element, but for a last bit of exp: each of the two by its own mask, rounded before."""
    group = at_scores(one_hot(problem.group()), problem.read())
    found, expected = problem.run(group), act_mul(replace(problem, act=None, extras=False).run(group), problem.act)
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-30)
    assert (found != expected).float().mean() < 0.01


@pytest.mark.parametrize("problem", PAIRED[-2:], ids=lambda problem: problem.act)
def test_activations_do_not_overflow(problem):
    """Where exp of a gate is infinite."""
    x, half = problem.x(), sum(problem.outs) // 2
    x[0, :4] = torch.tensor([-90.0, -20.0, 20.0, 90.0])
    eye = torch.eye(problem.columns, half, dtype=problem.dtype).repeat(1, 2)
    group = replace(problem.group(), weight=eye, bias=None, threshold=torch.full((1,), -INFINITY))
    assert_close_rms(problem.run(group, x), act_mul(x[:, :half].repeat(1, 2), problem.act), problem.dtype)


def test_a_kernel_is_loaded_once(monkeypatch):
    loads = []
    load = module.load
    monkeypatch.setattr(module, "load", lambda *arguments: loads.append(arguments) or load(*arguments))
    for _ in range(2):
        NUMERIC[0].run()
    NUMERIC[1].run()
    assert len(loads) == 2
