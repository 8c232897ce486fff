"""Fit what is free at run time to the dense model: a vector a linear, added on sparse rows, and the units' levels."""

from rsparse.compensation.fit import Compensated, compensate
from rsparse.compensation.settings import FitSettings
from rsparse.compensation.text import fit_windows

__all__ = ["Compensated", "FitSettings", "compensate", "fit_windows"]
