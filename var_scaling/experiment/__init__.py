"""What is trained and measured: trials, sweeps, imported models, sets of samples, their costs."""

from var_scaling.experiment.sweep import Sweep
from var_scaling.experiment.trial import ImportedModel, Trial

__all__ = ["ImportedModel", "Sweep", "Trial"]
