"""Sparse gated MLPs as a whole: methods whose mask is not the input of a linear."""

from rsparse.gated.plan import GatedPlan

__all__ = ["GatedPlan"]
