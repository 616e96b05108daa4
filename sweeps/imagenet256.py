"""The paper's grid at 256 pixels, depths 12 to 30: so far a plan, with its parameters and FLOPs."""

from var_scaling.config import ImageFiles, Optimiser, Sweep, Tokenizer, Trial
from var_scaling.ladder import paper_rung

_IMAGES = 1_281_167  # ImageNet-1k, train

_images = ImageFiles(name="imagenet", side=256, classes=1000, crops=4, enlarge=1.125)

# The released tokenizer's shape: 4096 codes of 32 channels, 680 tokens over ten scales.
_tokenizer = Tokenizer(
    name="vqvae-ch160",
    data=_images,
    optimiser=Optimiser(
        learning_rate=3e-4,
        betas=(0.5, 0.9),
        weight_decay=0.005,
        final_weight_decay=0.005,
        warm_up=0.01,
        final=0.3,
        clip=10.0,
    ),
    batch=768,
    steps=250 * _IMAGES // 768,
)


def _trial(depth: int) -> Trial:
    rung = paper_rung(depth)
    return Trial(
        name=f"d{depth}",
        tokenizer=_tokenizer,
        data=_images,
        model=rung.model,
        optimiser=rung.optimiser,
        batch=rung.batch,
        steps=rung.epochs * _IMAGES // rung.batch,
        evaluations=10,
    )


sweep = Sweep(
    name="imagenet256",
    question="Does the paper's law hold? L_mean = (2.5 N)^-0.20 above its floor (N in billions).",
    trials=tuple(_trial(depth) for depth in range(12, 31, 2)),
)
