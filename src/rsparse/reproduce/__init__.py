"""The paper's tables on any model: what runs, and the published figures beside under their own token policy."""

from rsparse.reproduce.table import Table, load, names

__all__ = ["Table", "load", "names"]
