"""The sweep of the Slurm tests: a short trial, and two long enough to be interrupted.

Slurm looks for jobs near their time limit every 30 s: the training of d3 takes longer.
"""

from sweeps.smoke import sweep as smoke
from var_scaling.experiment import Sweep

_tokenizer = smoke.trials[0].tokenizer
_images = _tokenizer.data.model_copy(
    update={"name": "leaves", "train_images": 9_000, "validation_images": 256}
)
_changes = {
    "tokenizer": _tokenizer.model_copy(update={"name": "tiny", "data": _images}),
    "data": _images,
    "evaluations": 3,
}


def _trial(depth: int, steps: int):
    return smoke.trials[depth - 1].model_copy(update={**_changes, "steps": steps})


sweep = Sweep(
    name="grid",
    question="Is anything lost?",
    trials=(_trial(1, 300), _trial(2, 1_200), _trial(3, 4_500)),
)
