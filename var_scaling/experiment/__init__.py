"""Records of experiments: trials, imported models, sweeps, sets of samples, and their costs."""

from var_scaling.experiment.sweep import Sweep
from var_scaling.experiment.trial import ImportedModel, Trial

__all__ = ["ImportedModel", "Sweep", "Trial"]
