"""Whether the learning-rate rule of the tiny ladder is near the optimum at each width.

If it is worse at some widths, the exponent of the fitted law is wrong.
"""

from sweeps.quickstart import grid
from var_scaling.experiment import Sweep
from var_scaling.ladder import tiny_optimiser

# A factor of 2 apart. The best one, 1/4, is not at the edge of those tried (LOG.md).
_CONSTANTS = (0.125, 0.25, 0.5, 1.0)
_DEPTHS = (1, 3, 5)

sweep = Sweep(
    name="tiny_rates",
    question="Which constant in rate = constant / width is best at each width?",
    trials=tuple(
        trial.model_copy(
            update={
                "name": f"{trial.name}-c{constant:g}",
                "optimiser": tiny_optimiser(trial.model.width, constant),
            }
        )
        for trial in grid("quickstart", seed=0).trials
        if trial.model.depth in _DEPTHS
        for constant in _CONSTANTS
    ),
)
