"""DiT's configs: model, sampling settings, and the published and tiny sizes."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from var_scaling.models.base import ModelRecord, SamplingRecord
from var_scaling.recipe import NonNegativeFloat, Share

BINS = 8  # time intervals of the validation loss
_MAX_FRAMES = 8  # intermediate results of a sample


class DitModel(ModelRecord):
    """A diffusion transformer with AdaLN-Zero (arXiv 2212.09748) on the tokenizer's grid.

    `prediction`: "velocity" is flow matching on the straight path between data and noise
    (arXiv 2401.08740). "epsilon" predicts the noise on a schedule of `schedule_steps` discrete
    steps with linear β, and with `learned_variance` also the variance of a step, as published.
    """

    family: Literal["dit"] = "dit"
    width_per_depth: PositiveInt = 64
    fixed_width: PositiveInt | None = None  # overrides width_per_depth x depth
    fixed_heads: PositiveInt | None = None  # overrides heads = depth
    latents: Literal["quantized", "unquantized"] = "quantized"  # decoded tokens, or features
    patch: PositiveInt = 1  # side of the square of grid cells per position
    mlp_ratio: PositiveInt = 4
    # Sines and cosines of the time; 256 as published.
    time_channels: Annotated[int, Field(ge=2, multiple_of=2)] = 256
    prediction: Literal["velocity", "epsilon"] = "velocity"
    learned_variance: bool = False
    schedule_steps: PositiveInt = 1000

    @property
    def width(self) -> int:
        return self.fixed_width or self.width_per_depth * self.depth

    @property
    def heads(self) -> int:
        return self.fixed_heads or self.depth

    def at_depth(self, depth: int) -> "DitModel":
        if self.fixed_width or self.fixed_heads:
            raise ValueError("fixed_width or fixed_heads is set, so the depth cannot be varied")
        return self.model_copy(update={"depth": depth})

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.width % 4:
            raise ValueError(f"width {self.width}: must be a multiple of 4 (position embedding)")
        if self.learned_variance and self.prediction != "epsilon":
            raise ValueError("learned_variance: allowed only with prediction = epsilon")
        return self


class DitSampling(SamplingRecord):
    """The sampling settings of a DiT. Guidance is g of c + g (c - u): the published 1.5 is 0.5.

    `sampler`: "ode" is deterministic (Euler for a velocity model, DDIM for an ε model), "sde" adds
    noise at each step (Euler-Maruyama, DDPM). Guidance applies to the times in `interval`, where 1
    is pure noise and 0 the image (arXiv 2404.07724).
    """

    family: Literal["dit"] = "dit"
    guidance: NonNegativeFloat = 0.5
    steps: PositiveInt = 50
    sampler: Literal["ode", "sde"] = "ode"
    interval: tuple[Share, Share] = (0.0, 1.0)

    @model_validator(mode="after")
    def _check_interval(self) -> Self:
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"interval = {self.interval}: the first must not exceed the second")
        return self

    def guided_at(self, time: float) -> bool:
        """Whether guidance applies at `time` in (0, 1]."""
        return self.guidance > 0 and self.interval[0] <= time <= self.interval[1]

    def frame_steps(self) -> tuple[int, ...]:
        """The steps after which the sampler yields a frame."""
        # The last entry is always `steps`, so the last frame is the sample.
        frames = min(self.steps, _MAX_FRAMES)
        return tuple(self.steps * (number + 1) // frames for number in range(frames))


def sampling_times(model: DitModel, steps: int) -> tuple[float, ...]:
    """The times in (0, 1] at which a sampler with `steps` steps evaluates the model, 1 first.

    A discrete schedule has the times 1 / N, 2 / N, …, 1. Raises ValueError if `steps` exceeds N.
    """
    if model.prediction == "velocity":
        # 1, 1 - 1/S, ..., 1/S. The samplers append time 0.
        return tuple(1 - number / steps for number in range(steps))
    total = model.schedule_steps
    if steps > total:
        raise ValueError(
            f"steps = {steps}: the model was trained on a schedule of {total}; use at most {total}"
        )
    # Evenly spaced over the schedule with both ends: the first time is 1, the last 1 / N.
    spacing = (total - 1) / max(1, steps - 1)
    return tuple((total - round(number * spacing)) / total for number in range(steps))


def tiny_dit(depth: int, width_per_depth: int = 8) -> DitModel:
    """A model that a CPU can train: width 8 d, flow matching, one position per grid cell."""
    # Velocity: DDIM on a predicted ε multiplies its error at pure noise by 158 (LOG.md).
    return DitModel(depth=depth, width_per_depth=width_per_depth, time_channels=32)


# Depth, width, heads of DiT (arXiv 2212.09748, table 1).
_PUBLISHED = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


def published_dit(size: str, patch: int) -> DitModel:
    """A published DiT: "S", "B", "L" or "XL", with patches of side 2, 4 or 8."""
    if size not in _PUBLISHED:
        raise ValueError(f"DiT {size}: unknown size; use {', '.join(_PUBLISHED)}")
    depth, width, heads = _PUBLISHED[size]
    return DitModel(
        depth=depth,
        fixed_width=width,
        fixed_heads=heads,
        patch=patch,
        prediction="epsilon",
        learned_variance=True,
    )
