"""Depth to everything else: the rules by which a grid of models grows, argued."""

from dataclasses import dataclass

from var_scaling.config import Model, TrainedTokenizer
from var_scaling.datasets import DeadLeaves, ImageFiles
from var_scaling.pyramid import PAPER_256, Pyramid
from var_scaling.recipe import Codebook, Critic, Losses, Optimiser, Precision


def tiny_model(depth: int, width_per_depth: int = 8) -> Model:
    """A rung of a ladder that a CPU can climb: width 8 d, so N = 1,152 d³ in the blocks.

    64 d is far too coarse below depth 4. Tiny models train for one pass over endless data, so
    nothing is dropped. AdaLN gammas start near, not at, zero, as the paper's do.
    """
    return Model(
        depth=depth, width_per_depth=width_per_depth, drop_path_per_depth=0.0, gamma_init=1e-3
    )


def tiny_optimiser(width: int, constant: float = 0.25) -> Optimiser:
    """Warm-up, stable, decay; the rate falls as 1 / width.

    One rate for all widths fakes a law: too low for the small models it steepens the exponent,
    too high for the large ones it bends it (TINY.md). Of the constants 1/8, 1/4, 1/2 and 1, 1/4 is
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
    data: DeadLeaves | ImageFiles,
    sides: tuple[int, ...],
    codes: int,
    steps: int,
    seed: int = 0,
) -> TrainedTokenizer:
    """A tokenizer that a CPU trains in minutes: two downsamplings, 16 to 32 channels.

    It autoencodes plainly at first: quantised from the start it may collapse (LOG.md).
    """
    return TrainedTokenizer(
        name=name,
        data=data,
        pyramid=Pyramid(sides=sides),
        codes=codes,
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
        steps=steps,
        seed=seed,
    )


@dataclass(frozen=True)
class PaperRung:
    """What the released recipe fixes at a depth (VAR.md 2.1)."""

    model: Model
    optimiser: Optimiser
    batch: int
    epochs: int
    precision: Precision = "fp16"

    def steps(self, images: int) -> int:
        """Updates of `epochs` epochs, as many each as the released trainer makes: its last batch is
        filled up. Ours straddles two passes instead, so the images seen are a little more.
        """
        return self.epochs * -(-images // self.batch)


# Depth: batch, epochs, rate per 256 images, gamma init, final rate, final decay, shared AdaLN.
_PUBLISHED = {
    16: (768, 200, 1e-4, 1e-3, 0.1, 0.05, False),
    20: (768, 250, 1e-4, 1e-3, 0.1, 0.05, False),
    24: (768, 350, 8e-5, 1e-4, 0.01, 0.05, False),
    30: (1024, 350, 8e-5, 1e-5, 0.01, 0.08, False),
    36: (768, 350, 8e-5, 5e-6, 0.01, 0.08, True),  # at 512 pixels
}


def paper_rung(depth: int) -> PaperRung:
    """The released recipe at `depth`: exact at 16, 20, 24, 30 and 36, the nearest smaller between.

    Below 16 nothing is published; there it is that of 16. Peak rate = rate per 256 images × batch /
    256, as the released trainer has it. Warm-up 2 % of the steps, `lin0`, drop path 0.1 d / 24.
    """
    base = max((d for d in _PUBLISHED if d <= depth), default=16)
    batch, epochs, rate, gamma, final, decay, shared = _PUBLISHED[base]
    optimiser = Optimiser(learning_rate=rate * batch / 256, final=final, final_weight_decay=decay)
    model = Model(depth=depth, gamma_init=gamma, shared_adaln=shared)
    return PaperRung(model, optimiser, batch, epochs)


def paper_tokenizer(
    name: str, data: ImageFiles, images: int, sides: tuple[int, ...] = PAPER_256
) -> TrainedTokenizer:
    """The released tokenizer's shape, and the recipe of VAR.md 2.2 made multi-scale.

    Ours differs in its critic (patches, without a pretrained network); in its codes: moving
    averages after k-means, because gradients leave four codes in five unused (TINY.md); and in its
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
        clip=10.0,
    )
    slack = rates.model_copy(update={"weight_decay": 5e-4, "final_weight_decay": 5e-4})
    return TrainedTokenizer(
        name=name,
        data=data,
        pyramid=Pyramid(sides=sides),
        losses=Losses(
            l1=0.2, l2=1.0, perceptual=1.0, adversarial=0.4, critic=Critic(optimiser=slack)
        ),
        codebook=Codebook(starts_at=1000),
        optimiser=rates,
        batch=batch,
        steps=epochs * images // batch,
        dropout=0.05,
        weight_average=0.9999,
        precision="bf16",
    )
