"""report.html and card.md: what was measured of a bundle, for people.

`data.py` gathers it, `stats.py` counts; `svg.py`, `plots.py` and `heatmap.py` draw;
`comparison.py`, `quality.py` and `sections.py` say what stands on the page; `page.py` and
`card.py` write it down. Equal data gives equal bytes.
"""

from edgelm.compiler.report.card import render_card
from edgelm.compiler.report.data import ReportData, report_data
from edgelm.compiler.report.page import render_report

__all__ = ["ReportData", "render_card", "render_report", "report_data"]
