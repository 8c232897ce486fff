"""What a decode step is made of: linears that read one input as one matrix, norms, and the ops over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

ROWS = 8  # sequences that a decode step takes at most: the kernels hold one accumulator a row


@dataclass(frozen=True)
class Section:
    """Columns [start, stop) of a group's output that share a mask and a low-rank factor; `mask` is a row of `threshold`."""

    start: int
    stop: int
    mask: int


@dataclass(frozen=True)
class Group:
    """The linears that read one input (q|k|v, o, gate|up, down), side by side as one matrix.

    y = W (m⊙x) + U Vᵀ((1−m)⊙x) + b, section by section, with m = |x|·channel_scale > threshold compared in fp32.

    weight: [in, out] contiguous, so that `weight.T[start:stop]` is a linear's own [out, in]. bias: [out] fp32 or None,
    compensation included: decode rows are sparse rows. channel_scale: [masks, in] fp32 or None for ones. threshold:
    [masks] fp32, −inf keeps all. V: [in, sections · r], a block of r columns for each section, U: [r, out], both in the
    weight's dtype and padded with zeros to the largest rank, a multiple of 8; or None. Sections cover all columns in
    order. `dense` says that every mask keeps all and there are no factors.
    """

    weight: Tensor
    bias: Tensor | None
    channel_scale: Tensor | None
    threshold: Tensor
    V: Tensor | None
    U: Tensor | None
    sections: tuple[Section, ...]
    dense: bool = False

    @property
    def in_features(self) -> int:
        return self.weight.shape[0]

    @property
    def out_features(self) -> int:
        return self.weight.shape[1]

    @property
    def rank(self) -> int:
        return 0 if self.U is None else self.U.shape[0]


@dataclass(frozen=True)
class Norm:
    """RMSNorm over the last dimension, fp32 inside, with transformers' two orders of rounding.

    Llama's: x·rsqrt(mean x² + eps) rounded to x's dtype, then times weight in that dtype. With `plus_one` Gemma's:
    times (1 + weight) in fp32, rounded last. weight: [n] in the model's dtype.
    """

    weight: Tensor
    eps: float
    plus_one: bool = False


@dataclass(frozen=True)
class Attention:
    """What an attention layer's decode step hangs on, besides tensors that change.

    scale multiplies q·k; softcap bounds it by softcap·tanh(·/softcap); window: a token sees itself and window − 1 slots
    before it. The norms are over the head dimension.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    q_norm: Norm | None = None
    k_norm: Norm | None = None


@dataclass(frozen=True)
class Cache:
    """A layer's keys and values, and where the step stands; the last three are the same for all layers.

    k, v: [rows, kv_heads, max_len, head_dim] in the model's dtype. slot: int32 of one element, the slot that the new
    token takes. first: [rows] int32, the first slot that is no padding. position: [rows] int32, the new token's.
    """

    k: Tensor
    v: Tensor
    slot: Tensor
    first: Tensor
    position: Tensor


class FusedOps(Protocol):
    """The ops of a decode step of 1 to ROWS sequences. x and what is returned: [rows, …] in the model's dtype, fp32 inside.

    None waits for the device, so that a CUDA graph can hold them; `add` [rows, out] is added last (the residual).
    """

    name: str

    def project(self, x: Tensor, group: Group, add: Tensor | None = None) -> Tensor:
        """y [rows, out] of x [rows, in]."""
        ...

    def norm_project(self, x: Tensor, norm: Norm, group: Group, add: Tensor | None = None) -> Tensor:
        """`project` of RMSNorm(x)."""
        ...

    def act_project(self, gate_up: Tensor, act: str, group: Group, add: Tensor | None = None) -> Tensor:
        """`project` of act(gate)·up, each rounded; gate_up: [rows, 2·in], act: `silu` or `gelu_tanh`."""
        ...

    def mlp(self, x: Tensor, norm: Norm, gate_up: Group, act: str, down: Group, add: Tensor | None = None) -> Tensor:
        """`norm_project` to gate|up, then `act_project` to down."""
        ...

    def attend(self, qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention) -> Tensor:
        """Attention of one new token: writes its k and v to the cache, returns [rows, heads · head_dim].

        qkv: [rows, (heads + 2 kv_heads) · head_dim]. cos_sin: [positions, head_dim], at a position cos of the
        head_dim/2 frequencies, then sin; rotates halves, as transformers does.
        """
        ...

    def attend_project(
        self, qkv: Tensor, cache: Cache, cos_sin: Tensor, attention: Attention, group: Group, add: Tensor | None = None
    ) -> Tensor:
        """`attend`, then `project`."""
        ...

    def norm(self, x: Tensor, norm: Norm, add: Tensor | None = None) -> Tensor:
        """RMSNorm(x) [+ add], where a norm comes after a linear."""
        ...

    def head(self, x: Tensor, norm: Norm, lm_head: Tensor, softcap: float | None = None) -> Tensor:
        """fp32 logits [rows, vocab] of RMSNorm(x); lm_head: [vocab, hidden]."""
        ...
