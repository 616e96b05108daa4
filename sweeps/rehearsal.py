"""A small version of `imagenet256`: photographs at 64 px, all tokenizer losses, on a CPU.

It needs weights for LPIPS under [weights] in var-scaling.toml. Random weights of the same shapes
(README) are enough to test that everything runs; only the published weights follow human judgement.
"""

from var_scaling.config import TrainedTokenizer
from var_scaling.datasets import ImageFiles
from var_scaling.experiment import Sweep, Trial
from var_scaling.ladder import tiny_optimiser
from var_scaling.models.var.config import tiny_var
from var_scaling.pyramid import Pyramid
from var_scaling.recipe import Codebook, Critic, Losses, Optimiser

_images = ImageFiles(
    name="tiny-imagenet-50", side=64, classes=50, train_images=25_000, crops=1, enlarge=1.125
)
_rates = Optimiser(
    learning_rate=1e-3,
    betas=(0.5, 0.9),
    weight_decay=0.005,
    final_weight_decay=0.005,
    grad_clip=10.0,
)
_tokenizer = TrainedTokenizer(
    name="rehearsal",
    data=_images,
    pyramid=Pyramid(patch_nums=(1, 2, 3, 4, 6, 8)),
    codebook_size=512,
    code_channels=16,
    channels=16,
    multipliers=(1, 2, 2, 4),
    residual_blocks=1,
    # Not the released 32: with 16 channels a group would be one channel and lose its mean.
    norm_groups=4,
    losses=Losses(
        l1=0.2,
        l2=1.0,
        perceptual=0.2,
        adversarial=0.1,
        critic=Critic(channels=32, starts=0.4, warm_up=0.1, optimiser=_rates),
    ),
    # Codes lag behind the features after k-means. An early restart brings them all into use within
    # 200 steps; with the default of 0.03 it was 68 % (LOG.md).
    codebook=Codebook(starts_at=50, decay=0.95, restart_below=0.2),
    optimiser=_rates,
    batch_size=8,
    steps=200,
    dropout=0.05,
    weight_average=0.98,
    precision="fp32",
)

sweep = Sweep(
    name="rehearsal",
    question="Do all parts of the large run work together? Too short to believe.",
    trials=tuple(
        Trial(
            name=f"d{depth}",
            tokenizer=_tokenizer,
            data=_images,
            model=tiny_var(depth),
            optimiser=tiny_optimiser(8 * depth),
            batch_size=32,
            steps=100,
        )
        for depth in (1, 2, 3)
    ),
)
