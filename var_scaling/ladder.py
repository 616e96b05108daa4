"""Depth to everything else: the rules by which a grid of models grows, argued."""

from dataclasses import dataclass

from var_scaling.config import Codebook, DeadLeaves, ImageFiles, Model, Optimiser, Tokenizer
from var_scaling.pyramid import Pyramid


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
) -> Tokenizer:
    """A tokenizer that a CPU trains in minutes: two downsamplings, 16 to 32 channels.

    It autoencodes plainly at first: quantised from the start it may collapse (LOG.md).
    """
    return Tokenizer(
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


def paper_rung(depth: int) -> PaperRung:
    """The released recipe at `depth`: exact at 16, 20, 24 and 30, the nearest smaller one between.

    Peak rate = rate per 256 images × batch / 256, as the released trainer computes it.
    """
    recipes = {  # depth: batch, epochs, rate per 256 images, gamma init, final rate, final decay
        16: (768, 200, 1e-4, 1e-3, 0.1, 0.05),
        20: (768, 250, 1e-4, 1e-3, 0.1, 0.05),
        24: (768, 350, 8e-5, 1e-4, 0.01, 0.05),
        30: (1024, 350, 8e-5, 1e-5, 0.01, 0.08),
    }
    base = max((d for d in recipes if d <= depth), default=16)
    batch, epochs, rate, gamma, final, decay = recipes[base]
    optimiser = Optimiser(learning_rate=rate * batch / 256, final=final, final_weight_decay=decay)
    return PaperRung(Model(depth=depth, gamma_init=gamma), optimiser, batch, epochs)
