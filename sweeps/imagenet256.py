"""The grid of the VAR paper at 256 pixels: depths 6 to 30 with the published recipes."""

from var_scaling.datasets import ImageFiles
from var_scaling.experiment import Sweep, Trial
from var_scaling.ladder import paper_tokenizer
from var_scaling.models.var.config import paper_recipe

IMAGES = 1_281_167  # ImageNet-1k, train

# The cache holds 16 random crops of each image, 28 GB of tokens; each epoch uses the next crop.
images = ImageFiles(
    name="imagenet", side=256, classes=1000, train_images=IMAGES, crops=16, enlarge=1.125
)
tokenizer = paper_tokenizer("vqvae-ch160", images, IMAGES)


def _trial(depth: int) -> Trial:
    recipe = paper_recipe(depth)
    return Trial(
        name=f"d{depth}",
        tokenizer=tokenizer,
        data=images,
        model=recipe.model,
        optimiser=recipe.optimiser,
        batch_size=recipe.batch_size,
        steps=recipe.steps(IMAGES),
        precision=recipe.precision,
        evaluations=10,
    )


sweep = Sweep(
    name="imagenet256",
    question="Does the paper's law hold? L_mean = (2.5 N)^-0.20 above its floor (N in billions).",
    trials=tuple(_trial(depth) for depth in range(6, 31, 2)),
)
