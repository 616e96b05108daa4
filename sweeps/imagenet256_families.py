"""The comparison of the VAR paper at 256 pixels with published settings: VAR, LlamaGen and DiT.

`var-scaling plan imagenet256_families` shows its cost. Each family has its own kind of tokenizer,
all trained with one recipe: VAR ten scales; LlamaGen (arXiv 2406.06525) one scale of 16,384 codes
with eight channels; DiT unquantised features with four channels at an eighth of the image side
(arXiv 2212.09748 uses a KL autoencoder of that shape). LlamaGen's dropout of 0.1 in the blocks is
not implemented.
"""

from sweeps.imagenet256 import IMAGES, images, tokenizer
from sweeps.imagenet256 import sweep as grid
from var_scaling.config import TrainedTokenizer
from var_scaling.experiment import Sweep, Trial
from var_scaling.experiment.scoring import Scoring
from var_scaling.ladder import paper_tokenizer
from var_scaling.models.ar.config import ArSampling, llamagen
from var_scaling.models.dit.config import DitSampling, published_dit
from var_scaling.models.var.config import VarSampling
from var_scaling.pyramid import Pyramid
from var_scaling.recipe import Codebook, Optimiser

_BATCH = 256  # of LlamaGen and DiT
_LLAMAGEN_EPOCHS = 300
# The published lengths, as are the optimisers below (docs/families.md, Published recipes).
_DIT_STEPS = {"S": 400_000, "B": 400_000, "L": 400_000, "XL": 7_000_000}


def _single_scale(name: str, **changes: object) -> TrainedTokenizer:
    """A tokenizer with one scale, trained with the recipe of VAR's tokenizer."""
    return paper_tokenizer(name, images, IMAGES, patch_nums=(16,)).model_copy(update=changes)


_one_scale = _single_scale("vqvae-16384", codebook_size=16_384, code_channels=8)
_features = _single_scale(
    "features-8x",
    pyramid=Pyramid(patch_nums=(32,)),
    # Three halvings instead of four: a grid of 32 x 32.
    multipliers=(1, 2, 4, 4),
    code_channels=4,
    # Quantisation starts at the last step, so that it trains as an autoencoder.
    codebook=Codebook(starts_at=tokenizer.steps - 1),
)

_llamagen = Optimiser(learning_rate=1e-4, grad_clip=1.0, warm_up=0.0, plateau=1.0, final=1.0)
_dit = Optimiser(
    learning_rate=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    final_weight_decay=0.0,
    warm_up=0.0,
    plateau=1.0,
    final=1.0,
    grad_clip=None,
)


def _ar(size: str) -> Trial:
    return Trial(
        name=f"llamagen-{size.lower()}",
        tokenizer=_one_scale,
        data=images,
        model=llamagen(size),
        optimiser=_llamagen,
        batch_size=_BATCH,
        # Rounded up in each epoch, as in `PaperRecipe.steps`.
        steps=_LLAMAGEN_EPOCHS * -(-IMAGES // _BATCH),
        precision="bf16",
        evaluations=10,
    )


def _diffusion(size: str) -> Trial:
    model = published_dit(size, 2).model_copy(update={"latents": "unquantized"})
    return Trial(
        name=f"dit-{size.lower()}-2",
        tokenizer=_features,
        data=images,
        model=model,
        optimiser=_dit,
        batch_size=_BATCH,
        steps=_DIT_STEPS[size],
        precision="bf16",
        weight_average=0.9999,
        evaluations=10,
    )


# Published guidance scales s are weights s - 1 here: LlamaGen's 2.0 is 1.0, DiT's 1.5 is 0.5.
_GUIDED = (
    VarSampling(precision="fp16"),
    ArSampling(guidance=1.0, precision="bf16"),
    DitSampling(guidance=0.5, steps=250, sampler="sde", precision="bf16"),
)
_UNGUIDED = (
    VarSampling(guidance=0, top_k=0, top_p=0, precision="fp16"),
    ArSampling(guidance=0, precision="bf16"),
    DitSampling(guidance=0, steps=250, sampler="sde", precision="bf16"),
)

sweep = Sweep(
    name="imagenet256_families",
    question="Do the paper's claims hold against AR and DiT, each with its published settings?",
    trials=(
        *(
            trial.model_copy(update={"name": f"var-{trial.name}"})
            for trial in grid.trials
            # The depths of the paper's table at 256 pixels.
            if trial.model.depth in (16, 20, 24, 30)
        ),
        *(_ar(size) for size in ("B", "L", "XL", "XXL")),
        *(_diffusion(size) for size in ("S", "B", "L", "XL")),
    ),
    # 50 x 1,000 classes: the 50,000 samples of the published FIDs.
    scorings=(
        Scoring(name="guided", sampling=_GUIDED, count=50, extractors=("inception",)),
        Scoring(name="unguided", sampling=_UNGUIDED, count=50, extractors=("inception",)),
    ),
)
