"""What we learned: a results table, laws fitted to it, figures and a report. Loads no torch."""

from analysis.fit import Fit, fit_law
from analysis.laws import LAWS, Law
from analysis.study import METRICS, Study, study
from analysis.table import Table, TableError, load_results

__all__ = [
    "LAWS",
    "METRICS",
    "Fit",
    "Law",
    "Study",
    "Table",
    "TableError",
    "fit_law",
    "load_results",
    "study",
]
