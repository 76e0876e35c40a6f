"""Pages: a ranking (ranking.py) and a monitored trace (monitored.py), each one file."""

from surgeon.report.page import fragment
from surgeon.report.panels import Panel
from surgeon.report.ranking import render, write_report
from surgeon.report.reading import TraceReading
from surgeon.report.rows import Measure, RankingPage

__all__ = ["Measure", "Panel", "RankingPage", "TraceReading", "fragment", "render", "write_report"]
