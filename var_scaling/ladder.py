"""Depth to everything else: the rules by which a grid of models grows, argued."""

from var_scaling.config import TrainedTokenizer
from var_scaling.datasets import DataRecord, ImageFiles
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.recipe import Codebook, Critic, Losses, Optimiser


def tiny_optimiser(width: int, constant: float = 0.25) -> Optimiser:
    """Warm-up, stable, decay; the rate falls as 1 / width.

    One rate for all widths fakes a law: too low for the small models it steepens the exponent,
    too high for the large ones it bends it (LOG.md). Of the constants 1/8, 1/4, 1/2 and 1, 1/4 is
    best at each of depths 1, 3 and 5: `var-scaling run tiny_rates` shows it.
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
    """A tokenizer that a CPU trains in minutes: two downsamplings, 16 to 32 channels.

    It autoencodes plainly at first: quantised from the start it may collapse (LOG.md).
    """
    return TrainedTokenizer(
        name=name,
        data=data,
        pyramid=Pyramid(patch_nums=patch_nums),
        codebook_size=codebook_size,
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
            grad_clip=10.0,
        ),
        batch_size=32,
        steps=steps,
        seed=seed,
    )


def paper_tokenizer(
    name: str, data: ImageFiles, images: int, patch_nums: tuple[int, ...] = PAPER_256
) -> TrainedTokenizer:
    """The released tokenizer's shape, and a VQGAN recipe made multi-scale.

    Ours differs in its critic (patches, without a pretrained network); in its codes: moving
    averages after k-means, because gradients leave four codes in five unused; and in its
    start, which is torch's own, phi the identity.
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
    slack = rates.model_copy(update={"weight_decay": 5e-4, "final_weight_decay": 5e-4})
    return TrainedTokenizer(
        name=name,
        data=data,
        pyramid=Pyramid(patch_nums=patch_nums),
        losses=Losses(
            l1=0.2, l2=1.0, perceptual=1.0, adversarial=0.4, critic=Critic(optimiser=slack)
        ),
        codebook=Codebook(starts_at=1000),
        optimiser=rates,
        batch_size=batch,
        steps=epochs * images // batch,
        dropout=0.05,
        weight_average=0.9999,
        precision="bf16",
    )
