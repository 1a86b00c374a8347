"""Reports of runs: one picture and one page that needs nothing else. Reads run folders only, never torch."""

from ldadam.report.page import write_report
from ldadam.report.run_data import RunData, load_run

__all__ = ["RunData", "load_run", "write_report"]
