"""Everything once, in about a minute: four sizes, too short to believe."""

from sweeps.quickstart import grid
from var_scaling.config import TrainedTokenizer
from var_scaling.experiment import Sweep


def _short() -> Sweep:
    whole = grid("smoke", seed=2)
    images = whole.trials[0].data.model_copy(
        update={"name": "dead-leaves-smoke", "train_images": 4_000, "validation_images": 512}
    )
    full = whole.tokenizers[0]
    assert isinstance(full, TrainedTokenizer)
    tokenizer = full.model_copy(
        update={
            "name": "tiny-smoke",
            "data": images,
            "steps": 60,
            "codebook": full.codebook.model_copy(update={"starts_at": 30}),
        }
    )
    changes = {"tokenizer": tokenizer, "data": images, "steps": 120}
    trials = tuple(trial.model_copy(update=changes) for trial in whole.trials[:4])
    return Sweep(name="smoke", question="Does everything run?", trials=trials)


sweep = _short()
