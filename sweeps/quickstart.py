"""A scaling law on a laptop: six sizes over 2.3 decades of N, one epoch of generated images."""

from var_scaling.datasets import DeadLeaves
from var_scaling.experiment import Sweep, Trial
from var_scaling.ladder import tiny_optimiser, tiny_tokenizer
from var_scaling.models.var.config import tiny_var


def grid(name: str, seed: int) -> Sweep:
    """The sweep with one seed for images, tokenizer and transformers."""
    # 64,000 = 2,000 steps x 32 images: no image is seen twice.
    images = DeadLeaves(
        name=f"dead-leaves-{seed}", side=16, train_images=64_000, validation_images=4_096, seed=seed
    )
    # Two downsamplings of 16 pixels: the finest scale is 4 x 4.
    tokenizer = tiny_tokenizer(
        f"tiny-{seed}", images, patch_nums=(1, 2, 3, 4), codebook_size=128, steps=900, seed=seed
    )
    trials = tuple(
        Trial(
            name=f"d{depth}",
            tokenizer=tokenizer,
            data=images,
            model=tiny_var(depth),
            optimiser=tiny_optimiser(8 * depth),
            batch_size=32,
            steps=2_000,
            seed=seed,
        )
        # N = 1,152 d³: a factor of 216.
        for depth in range(1, 7)
    )
    question = "Does the held-out loss fall as a power of the parameters?"
    return Sweep(name=name, question=question, trials=trials)


sweep = grid("quickstart", seed=0)
