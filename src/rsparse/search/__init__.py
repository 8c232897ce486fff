"""The search for each unit's share between whole channels and low rank (R-Sparse, Algorithm 1)."""

from rsparse.search.run import SearchSettings, check_study, search

__all__ = ["SearchSettings", "check_study", "search"]
