"""attend() with attend.cu built for the CPU, in every form and kind of attention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("triton")

from rsparse.ops.fused.cuda import attend as module
from rsparse.ops.fused.cuda.attend import Form, attend, covers
from rsparse.ops.fused.reference import ReferenceOps
from tests.ops.fused import problems
from tests.ops.fused.cuda import on_cpu
from tests.ops.fused.cuda.attend_on_cpu import Kernels
from tests.ops.fused.interpreted_kernels import Poisoned
from tests.support.tolerance import assert_close_rms

pytestmark = pytest.mark.skipif(on_cpu.COMPILER is None, reason="no g++ to build attend.cu for the CPU")

CPU = torch.device("cpu")
BF16, FP16 = torch.bfloat16, torch.float16
NAN = float("nan")


@dataclass(frozen=True)
class Problem:
    """form: warps, loads, splits and cluster; norm: of q and k, `plain` or `plus_one`."""

    dtype: torch.dtype
    rows: int
    group: int
    kv_heads: int
    d: int
    slot: int
    form: tuple[int, int, int, bool]
    norm: str | None = None
    window: int | None = None
    softcap: float | None = None
    padded: bool = False
    length: int = 80

    def __str__(self):
        return f"{self.rows}x{self.group}x{self.kv_heads}x{self.d}-{self.slot}-{self.form}"

    def made(self):
        """qkv, cache, cos_sin and attention: qkv unaligned, the cache with room between its slots and heads."""
        heads, options = self.group * self.kv_heads, {"window": self.window, "softcap": self.softcap}
        if self.norm is not None:
            made = replace(problems.norm(self.d, self.dtype, plus_one=self.norm == "plus_one"), eps=0.1)
            options |= {"q_norm": made, "k_norm": replace(made, weight=made.weight.flip(0), eps=0.2)}
        made = problems.attention(
            self.rows, heads, self.kv_heads, self.d, self.length, self.slot, self.dtype, padded=self.padded, **options
        )
        wide = torch.full((self.rows + 2, made[0].shape[1] + 8), NAN, dtype=self.dtype)
        wide[1:-1, 3:-5] = made[0]
        return wide[1:-1, 3:-5], roomy(made[1]), *made[2:]

    def wanted(self, made, cache):
        return ReferenceOps().attend(made[0].contiguous(), cache, *made[2:])

    def run(self, made):
        """y of attend(), whose scratch was NaN and whose counters must be back at 0."""
        workspace = Poisoned(CPU)
        assert covers(*made)
        y = attend(*made, workspace, Form(*self.form))
        workspace.counters(self.rows * self.kv_heads)
        return y


def roomy(cache):
    """The same cache in the midst of NaN, keys and values each."""

    def within(x):
        rows, heads, length, d = x.shape
        wide = torch.full((rows, heads + 1, length + 1, d + 8), NAN, dtype=x.dtype)
        wide[:, :heads, 1:, 8:] = x
        return wide[:, :heads, 1:, 8:]

    return replace(cache, k=within(cache.k), v=within(cache.v))


PROBLEMS = [
    Problem(BF16, 1, 1, 2, 64, 61, (1, 2, 2, True)),
    Problem(FP16, 1, 4, 2, 128, 70, (2, 3, 2, False), norm="plain"),
    Problem(BF16, 2, 7, 1, 32, 33, (4, 1, 4, True), norm="plus_one", padded=True),
    # Rows that begin before the window, at 0 and 12, and within it, at 24 of 18 to 77.
    Problem(FP16, 3, 2, 2, 16, 77, (1, 2, 1, False), window=60, softcap=3.0, padded=True),
    Problem(BF16, 2, 1, 2, 256, 9, (2, 2, 4, False), norm="plus_one", window=5, softcap=2.0),
    Problem(BF16, 1, 3, 1, 24, 75, (1, 1, 8, True), softcap=3.0),  # a third of the lanes idle, no whole warp of pairs
    Problem(FP16, 2, 8, 1, 80, 40, (2, 2, 2, True), norm="plain", window=1),  # of a window, only the new token
    Problem(BF16, 2, 2, 1, 8, 0, (1, 2, 2, False)),  # of nothing but it
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Those that all problems ask for, compiled together."""
    made, wanted = Kernels(tmp_path_factory.mktemp("kernels")), []
    with pytest.MonkeyPatch.context() as patch:
        on_cpu.stand_in(patch, module, wanted.append, lambda *arguments: on_cpu.Unbuilt())
        for problem in PROBLEMS:
            problem.run(problem.made())
    made.build(wanted)
    return made


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch, kernels):
    """attend() as it is, down to the call of the kernel. Outputs start as NaN, as deterministic torch fills new memory."""

    def load(constants, name, threads, shared, device):
        assert name == "attend"
        assert shared == constants["SHARED"]
        return kernels.kernel(constants, threads)

    on_cpu.stand_in(monkeypatch, module, lambda constants: constants, load)
    module._kernel.cache_clear()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    module._kernel.cache_clear()


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_it_computes_what_the_reference_does(problem):
    """And writes the new token's slot, and no other memory."""
    made = problem.made()
    expected = problems.copied(made[1])
    wanted = problem.wanted(made, expected)
    assert_close_rms(problem.run(made), wanted, problem.dtype)
    for own, theirs in ((made[1].k, expected.k), (made[1].v, expected.v)):
        assert torch.equal(own.isnan(), theirs.isnan())
        old = torch.arange(problem.length) != problem.slot
        assert torch.equal(own.nan_to_num()[:, :, old], theirs.nan_to_num()[:, :, old])
    assert torch.equal(made[1].v[:, :, problem.slot], expected.v[:, :, problem.slot])
    assert_close_rms(made[1].k[:, :, problem.slot], expected.k[:, :, problem.slot], problem.dtype)
    beside = made[1].k._base.clone()
    beside[:, : problem.kv_heads, 1:, 8:] = NAN
    assert beside.isnan().all()


def test_every_length(kernels):
    """Those at which a split or a thread has no slots, one, or as many as it can."""
    problem = PROBLEMS[0]
    for slot in range(36):
        made = replace(problem, slot=slot).made()
        wanted = problem.wanted(made, problems.copied(made[1]))
        assert_close_rms(problem.run(made), wanted, problem.dtype)


@pytest.mark.parametrize("problem", [PROBLEMS[1], PROBLEMS[2]], ids=str)
def test_the_same_bits_in_any_order_of_threads(problem, monkeypatch):
    expected = problem.run(problem.made())
    monkeypatch.setattr(on_cpu.Kernel, "backwards", True)
    assert torch.equal(problem.run(problem.made()), expected)


def test_scores_far_apart_and_far_from_zero():
    """By keys 100 times as large; what weighs most is of a block, or a thread, of its own."""
    problem = PROBLEMS[0]
    for most in (0, 20, 40, 60):
        qkv, cache, cos_sin, attention = problem.made()
        cache.k[:, :, most] *= 100
        made = (qkv, cache, cos_sin, replace(attention, scale=10.0))
        wanted = problem.wanted(made, problems.copied(cache))
        assert wanted.isfinite().all()
        assert_close_rms(problem.run(made), wanted, problem.dtype)


def test_a_kernel_is_loaded_once(monkeypatch):
    loads = []
    load = module.load
    monkeypatch.setattr(module, "load", lambda *arguments: loads.append(arguments) or load(*arguments))
    for slot in (5, 6):
        PROBLEMS[0].run(replace(PROBLEMS[0], slot=slot).made())
    PROBLEMS[1].run(PROBLEMS[1].made())
    assert len(loads) == 2
