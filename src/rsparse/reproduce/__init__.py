"""The paper's tables on any model: what runs, and the published figures beside under their own token policy."""

from rsparse.reproduce.table import PAPER, POLICIES, Table, load, names

__all__ = ["PAPER", "POLICIES", "Table", "load", "names"]
