"""A scaling law on photographs: CIFAR-10 at 32 pixels, on a CPU, in under an hour."""

from var_scaling.datasets import ImageFiles
from var_scaling.experiment import Sweep, Trial
from var_scaling.ladder import tiny_optimiser, tiny_tokenizer
from var_scaling.models.var.config import tiny_var

# Crop c is used in epoch c. 2,000 steps of 32 images are 1.3 epochs, so two crops are enough.
_images = ImageFiles(
    name="cifar10", side=32, classes=10, train_images=50_000, crops=2, enlarge=1.125, flip=True
)

# Two downsamplings of 32 pixels: the finest scale is 8 x 8.
_tokenizer = tiny_tokenizer(
    "cifar10-ch16", _images, patch_nums=(1, 2, 3, 4, 6, 8), codebook_size=256, steps=1_500
)

sweep = Sweep(
    name="cifar10",
    question="Does the law hold on photographs? 1.3 passes over the images, two crops each.",
    trials=tuple(
        Trial(
            name=f"d{depth}",
            tokenizer=_tokenizer,
            data=_images,
            model=tiny_var(depth),
            optimiser=tiny_optimiser(8 * depth),
            batch_size=32,
            steps=2_000,
        )
        for depth in range(1, 7)
    ),
)
