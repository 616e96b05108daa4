"""Scaling rules: optimiser and tokenizer settings by model width, with their reasons."""

from var_scaling.config import TrainedTokenizer
from var_scaling.datasets import DataRecord, ImageFiles
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.recipe import Codebook, Critic, Losses, Optimiser


def tiny_optimiser(width: int, constant: float = 0.25) -> Optimiser:
    """A warm-up-stable-decay schedule with a peak rate of constant / width.

    A single rate for all widths biases the scaling law: one too low for small models changes the
    exponent, one too high for large models bends the curve (LOG.md). Of the constants 1/8, 1/4, 1/2
    and 1, 1/4 is best at depths 1, 3 and 5 (`var-scaling run tiny_rates`).
    """
    return Optimiser(
        learning_rate=constant / width,
        weight_decay=0.0,
        final_weight_decay=0.0,
        plateau=0.7,
        final=0.02,
        warm_up=0.04,
    )


def tiny_tokenizer(
    name: str,
    data: DataRecord,
    patch_nums: tuple[int, ...],
    codebook_size: int,
    steps: int,
    seed: int = 0,
) -> TrainedTokenizer:
    """A tokenizer that a CPU trains in minutes: two downsamplings, 16 to 32 channels."""
    return TrainedTokenizer(
        name=name,
        data=data,
        pyramid=Pyramid(patch_nums=patch_nums),
        codebook_size=codebook_size,
        code_channels=8,
        channels=16,
        multipliers=(1, 2, 2),
        residual_blocks=1,
        # Several groups lose the means of channels, and so flat colours: after 400 steps 17.9 dB
        # with 16 groups, 17.8 dB with 4, 19.6 dB with one (LOG.md).
        norm_groups=1,
        codebook=Codebook(decay=0.95),
        optimiser=Optimiser(
            learning_rate=3e-3,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            final_weight_decay=0.0,
            plateau=0.5,
            grad_clip=10.0,
        ),
        batch_size=32,
        steps=steps,
        seed=seed,
    )


def paper_tokenizer(
    name: str, data: ImageFiles, images: int, patch_nums: tuple[int, ...] = PAPER_256
) -> TrainedTokenizer:
    """The architecture of the released tokenizer, with a multi-scale VQGAN training recipe.

    Differences from the paper: a patch critic without a pretrained network; codes that are moving
    averages after k-means, because gradients leave four of five codes unused; and initial weights
    that keep the variance (tokenizer/autoencoder.py), with phi as the identity.
    """
    batch, epochs = 768, 250
    rates = Optimiser(
        learning_rate=3e-4,
        betas=(0.5, 0.9),
        weight_decay=0.005,
        final_weight_decay=0.005,
        warm_up=0.01,
        decay="cosine",
        plateau=0.0,
        final=0.3,
        grad_clip=10.0,
    )
    critic_optimiser = rates.model_copy(update={"weight_decay": 5e-4, "final_weight_decay": 5e-4})
    return TrainedTokenizer(
        name=name,
        data=data,
        pyramid=Pyramid(patch_nums=patch_nums),
        losses=Losses(
            l1=0.2,
            l2=1.0,
            perceptual=1.0,
            adversarial=0.4,
            critic=Critic(optimiser=critic_optimiser),
        ),
        # A plain autoencoder first: quantised from step 0, training may collapse (LOG.md).
        codebook=Codebook(starts_at=1000),
        optimiser=rates,
        batch_size=batch,
        steps=epochs * images // batch,
        dropout=0.05,
        weight_average=0.9999,
        precision="bf16",
    )
