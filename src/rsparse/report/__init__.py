"""One self-contained HTML page from a folder of result records."""

from rsparse.report.build import write_report

__all__ = ["write_report"]
