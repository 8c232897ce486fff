"""The ops of a decode step, fused for few launches: types.py says what they are, reference.py what they compute."""

from rsparse.ops.fused.dispatch import fused_ops, refusal
from rsparse.ops.fused.types import Attention, Cache, FusedOps, Group, Norm, Section

__all__ = ["Attention", "Cache", "FusedOps", "Group", "Norm", "Section", "fused_ops", "refusal"]
