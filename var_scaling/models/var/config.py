"""VAR's records: the transformer's shape, how it is sampled from, and published and tiny sizes."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from var_scaling.models.base import ModelRecord, SamplingRecord
from var_scaling.recipe import NonNegativeFloat, Optimiser, PositiveFloat, Precision, Share

_MIXED_AT_FIRST, _MIXED_LESS, _MIXED_AT_LEAST = 0.27, 0.95, 0.005  # as released


class VarModel(ModelRecord):
    """A VAR transformer. One dial, depth; width and heads follow from it."""

    family: Literal["var"] = "var"
    width_per_depth: PositiveInt = 64
    mlp_ratio: PositiveInt = 4
    drop_path_per_depth: NonNegativeFloat = 0.1 / 24
    shared_adaln: bool = False
    normalised_attention: bool = True
    gamma_init: NonNegativeFloat = 1e-5  # AdaLN rows that scale a block's output
    adaln_init: NonNegativeFloat = 0.5
    head_init: NonNegativeFloat = 0.02

    @property
    def width(self) -> int:
        return self.width_per_depth * self.depth

    @property
    def heads(self) -> int:
        return self.depth

    @property
    def drop_path(self) -> float:
        """Drop rate of the last block; the rate grows linearly from 0 at the first."""
        return self.drop_path_per_depth * self.depth

    @model_validator(mode="after")
    def _keeps_some_paths(self) -> Self:
        if self.drop_path >= 1:
            raise ValueError(
                f"drop_path_per_depth x depth = {self.drop_path:.3g} must stay below 1"
            )
        return self


class AtScale(NamedTuple):
    """The settings of one scale. `tau` is None where codes are drawn and not mixed."""

    guidance: float  # t of (1 + t) × conditional - t × unconditional
    top_k: int  # 0: all
    top_p: float  # 0: all
    temperature: float
    sharpening: float  # of the logits before they are mixed
    tau: float | None  # of the Gumbel softmax that mixes codes


class VarSampling(SamplingRecord):
    """What may be set about a sample besides its seed, class and index.

    A value that is a list has an entry for each scale. A single `guidance` grows linearly from 0 at
    the first scale to that at the last (`rising`), or is the same at all. The defaults are those of
    the released FID figures. `smooth` shows each finer scale a mixture of codes instead of those
    drawn: rounder shapes, for pictures, not for figures.
    """

    family: Literal["var"] = "var"
    guidance: NonNegativeFloat | tuple[NonNegativeFloat, ...] = 1.5
    rising: bool = True
    top_k: NonNegativeInt | tuple[NonNegativeInt, ...] = 900
    top_p: Share | tuple[Share, ...] = 0.96
    temperature: PositiveFloat | tuple[PositiveFloat, ...] = 1.0
    smooth: bool = False

    _said_with_guidance: ClassVar[tuple[str, ...]] = ("rising",)

    def _guidance_words(self) -> str:
        rises = self.guided and self.rising and not isinstance(self.guidance, tuple)
        return super()._guidance_words() + ", rising from 0" * rises

    def at(self, k: int, scales: int) -> AtScale:
        """The settings of scale `k` of `scales`. Raises ValueError if a list has another length."""
        way = k / (scales - 1) if scales > 1 else 1.0  # a lone scale is the last one
        guidance = _one(self, "guidance", k, scales)
        if self.rising and not isinstance(self.guidance, tuple):
            guidance *= way
        tau = max(_MIXED_AT_FIRST * (1 - _MIXED_LESS * way), _MIXED_AT_LEAST)
        return AtScale(
            guidance=guidance,
            top_k=int(_one(self, "top_k", k, scales)),
            top_p=_one(self, "top_p", k, scales),
            temperature=_one(self, "temperature", k, scales),
            sharpening=1 + way,
            tau=tau if self.smooth else None,
        )

    def steps(self, scales: int) -> list[AtScale]:
        """The settings of every scale of a pyramid. Raises ValueError."""
        return [self.at(k, scales) for k in range(scales)]

    def weights(self, scales: int) -> list[float]:
        """The guidance of every scale. Raises ValueError."""
        return [at.guidance for at in self.steps(scales)]


def _one(sampling: VarSampling, name: str, k: int, scales: int) -> float:
    value = getattr(sampling, name)
    if not isinstance(value, tuple):
        return float(value)
    if len(value) != scales:
        raise ValueError(
            f"{name} = {list(value)}: {len(value)} values, but the model has {scales} scales"
        )
    return float(value[k])


def tiny_var(depth: int, width_per_depth: int = 8) -> VarModel:
    """A rung of a ladder that a CPU can climb: width 8 d, so N = 1,152 d³ in the blocks.

    64 d is far too coarse below depth 4. Tiny models train for one pass over endless data, so
    nothing is dropped. AdaLN gammas start near, not at, zero, as the paper's do.
    """
    return VarModel(
        depth=depth, width_per_depth=width_per_depth, drop_path_per_depth=0.0, gamma_init=1e-3
    )


@dataclass(frozen=True)
class PaperRecipe:
    """What the released recipe fixes at a depth (arXiv 2404.02905, and the released trainer)."""

    model: VarModel
    optimiser: Optimiser
    batch_size: int
    epochs: int
    precision: Precision = "fp16"

    def steps(self, images: int) -> int:
        """Updates of `epochs` epochs, as many each as the released trainer makes: its last batch is
        filled up. Ours straddles two passes instead, so the images seen are a little more.
        """
        return self.epochs * -(-images // self.batch_size)


# Depth: batch, epochs, rate per 256 images, gamma init, final rate, final decay, shared AdaLN.
_PUBLISHED = {
    16: (768, 200, 1e-4, 1e-3, 0.1, 0.05, False),
    20: (768, 250, 1e-4, 1e-3, 0.1, 0.05, False),
    24: (768, 350, 8e-5, 1e-4, 0.01, 0.05, False),
    30: (1024, 350, 8e-5, 1e-5, 0.01, 0.08, False),
    36: (768, 350, 8e-5, 5e-6, 0.01, 0.08, True),  # at 512 pixels
}


def paper_recipe(depth: int) -> PaperRecipe:
    """The released recipe at `depth`: exact at 16, 20, 24, 30 and 36, the nearest smaller between.

    Below 16 nothing is published; there it is that of 16. Peak rate = rate per 256 images × batch /
    256, as the released trainer has it. Warm-up 2 % of the steps, `lin0`, drop path 0.1 d / 24.
    """
    base = max((d for d in _PUBLISHED if d <= depth), default=16)
    batch, epochs, rate, gamma, final, decay, shared = _PUBLISHED[base]
    optimiser = Optimiser(learning_rate=rate * batch / 256, final=final, final_weight_decay=decay)
    model = VarModel(depth=depth, gamma_init=gamma, shared_adaln=shared)
    return PaperRecipe(model, optimiser, batch, epochs)
