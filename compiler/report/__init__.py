"""report.html and card.md: what was measured of a bundle, for people.

`data.py` gathers it, `stats.py` counts; `svg.py`, `plots.py` and `heatmap.py` draw; `page.py` and
`card.py` write down what every report has, `search.py` what a search for a budget has found. What
is said of one kind of task stands in files of its own, which `kinds.py` chooses from: `encoder.py`
(labels and vectors, whatever the model: with `comparison.py`, `quality.py`, `encoder_card.py`) and
`decoder.py` (generation: with `decoder_card.py`). Equal data gives equal bytes.
"""

from edgelm.compiler.report.card import render_card
from edgelm.compiler.report.data import DecoderData, EncoderData, ReportData, report_data
from edgelm.compiler.report.page import render_report, render_search

__all__ = [
    "DecoderData",
    "EncoderData",
    "ReportData",
    "render_card",
    "render_report",
    "render_search",
    "report_data",
]
