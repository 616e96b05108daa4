"""The quickstart with five tokenizers that differ only in their number of training steps."""

from sweeps.quickstart import grid
from var_scaling.config import TrainedTokenizer
from var_scaling.experiment import Sweep, Trial

STEPS = (450, 900, 1_800, 3_600, 7_200)

_quickstart = grid("quickstart", seed=0)


def _with_steps(trial: Trial, steps: int) -> Trial:
    t = trial.tokenizer
    assert isinstance(t, TrainedTokenizer)
    if steps != t.steps:  # else the tokenizer of `quickstart`, which then is trained once
        t = t.model_copy(update={"name": f"{t.name}-{steps}", "steps": steps})
    return trial.model_copy(update={"name": f"{trial.name}-{steps}", "tokenizer": t})


sweep = Sweep(
    name="tokenizer_quality",
    question="Does the exponent of a law depend on the quality of its tokenizer?",
    trials=tuple(_with_steps(trial, steps) for steps in STEPS for trial in _quickstart.trials),
)
