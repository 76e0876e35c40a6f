"""Pages: a ranking (ranking_page.py) and a monitored trace (monitored.py), each one file; a reading
(browser.py) and a pick (picked.py), which load responses from beside them."""

from surgeon.report.measures import Measure, RankingPage
from surgeon.report.page import fragment
from surgeon.report.panels import Panel
from surgeon.report.ranking_page import render, write_report
from surgeon.report.reading import TraceReading

__all__ = ["Measure", "Panel", "RankingPage", "TraceReading", "fragment", "render", "write_report"]
