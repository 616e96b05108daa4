"""What we learned: a run table, laws fitted to it, figures and a report. Loads no torch."""

from analysis.comparison.var_paper import paper_table
from analysis.fitting.fit import Fit, NotConverged, fit_law
from analysis.fitting.laws import (
    FLOOR,
    INTERACTION,
    LAWS,
    LOGIT,
    PURE,
    REPEATED,
    RISING,
    SIGMOID,
    SURFACE,
    TIED,
    VARYING,
    Law,
)
from analysis.fitting.points import FitError
from analysis.fitting.verify import certify
from analysis.law_result import METRICS
from analysis.selection.select import choose
from analysis.study import Study, studies, study
from analysis.table.table import Table, TableError, load_results, load_table
from analysis.uncertainty.bootstrap import Bootstrap, bootstrap, seed_noise
from analysis.uncertainty.intervals import Interval, interval, prediction_interval

__all__ = [
    "FLOOR",
    "INTERACTION",
    "LAWS",
    "LOGIT",
    "METRICS",
    "PURE",
    "REPEATED",
    "RISING",
    "SIGMOID",
    "SURFACE",
    "TIED",
    "VARYING",
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
    "studies",
    "study",
]
