"""A test of the whole pipeline in about 40 seconds: four sizes, too few steps for valid results."""

from sweeps.quickstart import grid
from var_scaling.experiment import Sweep


def _short() -> Sweep:
    full = grid("smoke", seed=2)
    images = full.trials[0].data.model_copy(
        update={"name": "dead-leaves-smoke", "train_images": 4_000, "validation_images": 512}
    )
    tokenizer = full.tokenizers[0].model_copy(
        update={"name": "tiny-smoke", "data": images, "steps": 60}
    )
    changes = {"tokenizer": tokenizer, "data": images, "steps": 120}
    trials = tuple(trial.model_copy(update=changes) for trial in full.trials[:4])
    return Sweep(name="smoke", question="Does everything run?", trials=trials)


sweep = _short()
