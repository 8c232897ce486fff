"""Low-rank factors U [out, r], V [in, r] of a weight, singular values folded in."""

from rsparse.lowrank.dropped import fit_to_dropped
from rsparse.lowrank.svd import truncated_svd

__all__ = ["fit_to_dropped", "truncated_svd"]
