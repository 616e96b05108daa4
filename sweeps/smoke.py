"""A test of the whole pipeline in about a minute: four sizes, too few steps for valid results."""

from sweeps.quickstart import grid
from var_scaling.config import TrainedTokenizer
from var_scaling.experiment import Sweep


def _short() -> Sweep:
    full = grid("smoke", seed=2)
    images = full.trials[0].data.model_copy(
        update={"name": "dead-leaves-smoke", "train_images": 4_000, "validation_images": 512}
    )
    full_tokenizer = full.tokenizers[0]
    assert isinstance(full_tokenizer, TrainedTokenizer)
    tokenizer = full_tokenizer.model_copy(
        update={
            "name": "tiny-smoke",
            "data": images,
            "steps": 60,
            # The tiny ladder quantises from step 300 on, after the end of this training.
            "codebook": full_tokenizer.codebook.model_copy(update={"starts_at": 30}),
        }
    )
    changes = {"tokenizer": tokenizer, "data": images, "steps": 120}
    trials = tuple(trial.model_copy(update=changes) for trial in full.trials[:4])
    return Sweep(name="smoke", question="Does everything run?", trials=trials)


sweep = _short()
