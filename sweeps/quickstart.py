"""A law on a laptop: six sizes over 2.3 decades of N, one pass over images made here."""

from var_scaling.config import Codebook, DeadLeaves, Optimiser, Sweep, Tokenizer, Trial
from var_scaling.ladder import tiny_model, tiny_optimiser
from var_scaling.pyramid import Pyramid


def grid(name: str, seed: int) -> Sweep:
    """The whole of it from one seed: images, tokenizer and transformers."""
    images = DeadLeaves(
        name=f"dead-leaves-{seed}", side=16, train_images=80_000, validation_images=4_096, seed=seed
    )
    tokenizer = Tokenizer(
        name=f"tiny-{seed}",
        data=images,
        pyramid=Pyramid(sides=(1, 2, 3, 4)),
        codes=128,
        code_channels=8,
        channels=16,
        multipliers=(1, 2, 2),
        residual_blocks=1,
        norm_groups=1,
        codebook=Codebook(starts_at=300, decay=0.95),
        optimiser=Optimiser(
            learning_rate=3e-3,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            final_weight_decay=0.0,
            plateau=0.5,
            clip=10.0,
        ),
        batch=32,
        steps=900,
        seed=seed,
    )
    trials = tuple(
        Trial(
            name=f"d{depth}",
            tokenizer=tokenizer,
            data=images,
            model=tiny_model(depth),
            optimiser=tiny_optimiser(8 * depth),
            batch=32,
            steps=2_500,
            seed=seed,
        )
        for depth in range(1, 7)
    )
    question = "Does the held-out loss fall as a power of the parameters?"
    return Sweep(name=name, question=question, trials=trials)


sweep = grid("quickstart", seed=0)
