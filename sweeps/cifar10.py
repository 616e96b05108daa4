"""A law on real photographs: CIFAR-10 at 32 pixels, on a CPU, in under an hour."""

from var_scaling.config import Codebook, ImageFiles, Optimiser, Sweep, Tokenizer, Trial
from var_scaling.ladder import tiny_model, tiny_optimiser
from var_scaling.pyramid import Pyramid

_images = ImageFiles(name="cifar10", side=32, classes=10, crops=2, enlarge=1.125, flip=True)

_tokenizer = Tokenizer(
    name="cifar10-ch16",
    data=_images,
    pyramid=Pyramid(sides=(1, 2, 3, 4, 6, 8)),
    codes=256,
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
    steps=1_500,
)

sweep = Sweep(
    name="cifar10",
    question="Does the law hold on photographs? 1.3 passes over the images, two crops each.",
    trials=tuple(
        Trial(
            name=f"d{depth}",
            tokenizer=_tokenizer,
            data=_images,
            model=tiny_model(depth),
            optimiser=tiny_optimiser(8 * depth),
            batch=32,
            steps=2_000,
        )
        for depth in range(1, 7)
    ),
)
