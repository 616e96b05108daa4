"""VAR's configs: model, sampling settings, and the published and tiny sizes."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from var_scaling.models.base import ModelRecord, SamplingRecord
from var_scaling.recipe import NonNegativeFloat, Optimiser, PositiveFloat, Precision, Share

# Gumbel temperature of `smooth`: its start, relative decrease and minimum, as released.
_TAU_START, _TAU_DECREASE, _TAU_MIN = 0.27, 0.95, 0.005


class VarModel(ModelRecord):
    """A VAR transformer. Depth determines width and heads."""

    family: Literal["var"] = "var"
    # The published rules: width 64 d and d heads, so 64 channels per head; drop path 0.1 d / 24.
    width_per_depth: PositiveInt = 64
    mlp_ratio: PositiveInt = 4
    drop_path_per_depth: NonNegativeFloat = 0.1 / 24
    shared_adaln: bool = False
    normalised_attention: bool = True
    gamma_init: NonNegativeFloat = 1e-5  # scale of the initial AdaLN weights of the two gates
    adaln_init: NonNegativeFloat = 0.5  # scale of the other initial AdaLN weights
    head_init: NonNegativeFloat = 0.02  # scale of the initial head weights

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
    def _check_drop_path(self) -> Self:
        # The kept branches are divided by 1 - drop_path.
        if self.drop_path >= 1:
            raise ValueError(
                f"drop_path_per_depth x depth = {self.drop_path:.3g} must stay below 1"
            )
        return self


class ScaleSettings(NamedTuple):
    """The sampling settings of one scale. `tau` is None unless codes are mixed (`smooth`)."""

    guidance: float  # t of (1 + t) × conditional - t × unconditional
    top_k: int  # 0: all
    top_p: float  # 0: all
    temperature: float
    sharpening: float  # factor on the logits before the Gumbel softmax
    tau: float | None  # temperature of the Gumbel softmax that mixes codes


class VarSampling(SamplingRecord):
    """The sampling settings of a VAR.

    A list has an entry for each scale. A single `guidance` is constant over the scales or, with
    `rising`, grows linearly from 0 at the first scale to its value at the last. The defaults are
    those of the released FID results. With `smooth` a mixture of codes enters the
    grid instead of the sampled codes: smoother shapes, for viewing, not for metrics.
    """

    family: Literal["var"] = "var"
    guidance: NonNegativeFloat | tuple[NonNegativeFloat, ...] = 1.5
    rising: bool = True
    top_k: NonNegativeInt | tuple[NonNegativeInt, ...] = 900
    top_p: Share | tuple[Share, ...] = 0.96
    temperature: PositiveFloat | tuple[PositiveFloat, ...] = 1.0
    smooth: bool = False

    _described_with_guidance: ClassVar[tuple[str, ...]] = ("rising",)

    def _describe_guidance(self) -> str:
        rises = self.guided and self.rising and not isinstance(self.guidance, tuple)
        return super()._describe_guidance() + ", rising from 0" * rises

    def at_scale(self, k: int, scales: int) -> ScaleSettings:
        """The settings of scale `k`. Raises ValueError if a list does not have `scales` entries."""
        progress = k / (scales - 1) if scales > 1 else 1.0  # a single scale counts as the last
        guidance = _value_at_scale(self, "guidance", k, scales)
        if self.rising and not isinstance(self.guidance, tuple):
            guidance *= progress
        # As released: towards fine scales the mixture approaches a single code.
        tau = max(_TAU_START * (1 - _TAU_DECREASE * progress), _TAU_MIN)
        return ScaleSettings(
            guidance=guidance,
            top_k=int(_value_at_scale(self, "top_k", k, scales)),
            top_p=_value_at_scale(self, "top_p", k, scales),
            temperature=_value_at_scale(self, "temperature", k, scales),
            sharpening=1 + progress,
            tau=tau if self.smooth else None,
        )

    def steps(self, scales: int) -> list[ScaleSettings]:
        """The settings of every scale. Raises ValueError as `at_scale` does."""
        return [self.at_scale(k, scales) for k in range(scales)]

    def weights(self, scales: int) -> list[float]:
        """The guidance weight of every scale. Raises ValueError as `at_scale` does."""
        return [settings.guidance for settings in self.steps(scales)]


def _value_at_scale(sampling: VarSampling, name: str, k: int, scales: int) -> float:
    value = getattr(sampling, name)
    if not isinstance(value, tuple):
        return float(value)
    if len(value) != scales:
        raise ValueError(
            f"{name} = {list(value)}: {len(value)} values, but the model has {scales} scales"
        )
    return float(value[k])


def tiny_var(depth: int, width_per_depth: int = 8) -> VarModel:
    """A model that a CPU can train: width 8 d, so N = 1,152 d³ weights in the blocks.

    With width 64 d the steps between sizes are far too large below depth 4. Tiny models train for
    one pass over endless data, so drop path is off. AdaLN gates start near zero, as in the paper.
    """
    return VarModel(
        depth=depth, width_per_depth=width_per_depth, drop_path_per_depth=0.0, gamma_init=1e-3
    )


@dataclass(frozen=True)
class PaperRecipe:
    """The released training recipe of one depth (arXiv 2404.02905, and the released trainer)."""

    model: VarModel
    optimiser: Optimiser
    batch_size: int
    epochs: int
    precision: Precision = "fp16"

    def steps(self, images: int) -> int:
        """Updates of `epochs` epochs, rounded up per epoch: the released trainer fills each last
        batch. Here a batch can span two epochs instead, so slightly more images are seen.
        """
        return self.epochs * -(-images // self.batch_size)


# Depth: batch size, epochs, learning rate per 256 images, gamma_init, final learning rate as a
# share of the peak, final weight decay, shared AdaLN.
_PUBLISHED = {
    16: (768, 200, 1e-4, 1e-3, 0.1, 0.05, False),
    20: (768, 250, 1e-4, 1e-3, 0.1, 0.05, False),
    24: (768, 350, 8e-5, 1e-4, 0.01, 0.05, False),
    30: (1024, 350, 8e-5, 1e-5, 0.01, 0.08, False),
    36: (768, 350, 8e-5, 5e-6, 0.01, 0.08, True),  # at 512 pixels
}


def paper_recipe(depth: int) -> PaperRecipe:
    """The released recipe for `depth`. Published depths: 16, 20, 24, 30 and 36.

    Another depth uses the next smaller of them; below 16, that of 16. Peak rate = rate per 256
    images × batch size / 256, warm-up 2 % of the steps, schedule `lin0`, drop path 0.1 d / 24.
    """
    published_depth = max((d for d in _PUBLISHED if d <= depth), default=16)
    batch_size, epochs, rate, gamma, final, decay, shared = _PUBLISHED[published_depth]
    optimiser = Optimiser(
        learning_rate=rate * batch_size / 256, final=final, final_weight_decay=decay
    )
    model = VarModel(depth=depth, gamma_init=gamma, shared_adaln=shared)
    return PaperRecipe(model, optimiser, batch_size, epochs)
