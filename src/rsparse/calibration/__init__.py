"""Text → token windows → statistics of a dense model's activations, on disk."""

from rsparse.calibration.observe import calibrate
from rsparse.calibration.store import Calibration, CalibrationMeta, SiteStatistics
from rsparse.calibration.text import TextSource

__all__ = ["Calibration", "CalibrationMeta", "SiteStatistics", "TextSource", "calibrate"]
