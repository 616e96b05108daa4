"""What we learned: a run table, laws fitted to it, figures and a report. Loads no torch."""

from analysis.certify import certify
from analysis.choice import choose
from analysis.fit import Fit, NotConverged, fit_law
from analysis.intervals import Interval, interval, prediction_interval
from analysis.laws import FLOOR, LAWS, LOGIT, PURE, REPEATED, SURFACE, Law
from analysis.paper import paper_table
from analysis.points import FitError
from analysis.study import METRICS, Study, study
from analysis.table import Table, TableError, load_results, load_table
from analysis.uncertainty import Bootstrap, bootstrap, seed_noise

__all__ = [
    "FLOOR",
    "LAWS",
    "LOGIT",
    "METRICS",
    "PURE",
    "REPEATED",
    "SURFACE",
    "Bootstrap",
    "Fit",
    "FitError",
    "Interval",
    "Law",
    "NotConverged",
    "Study",
    "Table",
    "TableError",
    "bootstrap",
    "certify",
    "choose",
    "fit_law",
    "interval",
    "load_results",
    "load_table",
    "paper_table",
    "prediction_interval",
    "seed_noise",
    "study",
]
