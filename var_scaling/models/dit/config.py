"""DiT's records: the transformer's shape, how it is sampled from, published and tiny sizes."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from var_scaling.models.base import ModelRecord, SamplingRecord
from var_scaling.recipe import NonNegativeFloat, Share

BINS = 8  # of the times of the validation loss
_FRAMES = 8  # of a sample in the making, at most


class DitModel(ModelRecord):
    """A diffusion transformer with AdaLN-Zero (arXiv 2212.09748) on the tokenizer's grid.

    `prediction`: "velocity" is flow matching on the straight path between data and noise
    (arXiv 2401.08740); "epsilon" predicts the noise of `schedule_steps` discrete steps with linear
    β, and with `learned_variance` the variance of a step too, as published.
    """

    family: Literal["dit"] = "dit"
    width_per_depth: PositiveInt = 64
    fixed_width: PositiveInt | None = None  # in place of width_per_depth x depth
    fixed_heads: PositiveInt | None = None  # in place of one for each layer of depth
    latents: Literal["quantized", "unquantized"] = "quantized"  # what the tokens stand for, or f
    patch: PositiveInt = 1  # side of the squares of the grid that become one position
    mlp_ratio: PositiveInt = 4
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
            raise ValueError("fixed_width and fixed_heads: such a model has no ladder of depths")
        return self.model_copy(update={"depth": depth})

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if self.width % 4:
            raise ValueError(f"width {self.width}: must be a multiple of 4 (sines and cosines)")
        if self.learned_variance and self.prediction != "epsilon":
            raise ValueError("learned_variance: only with prediction = epsilon")
        return self


class DitSampling(SamplingRecord):
    """How a DiT is sampled from. Guidance is g of c + g (c - u): the published 1.5 is .5 here.

    `sampler`: "ode" follows the deterministic path (Euler for a velocity model, DDIM for an ε
    model), "sde" adds noise at each step (Euler-Maruyama, DDPM). Guidance applies to the times in
    `interval`, where 1 is pure noise and 0 the image (arXiv 2404.07724).
    """

    family: Literal["dit"] = "dit"
    guidance: NonNegativeFloat = 0.5
    steps: PositiveInt = 50
    sampler: Literal["ode", "sde"] = "ode"
    interval: tuple[Share, Share] = (0.0, 1.0)

    @model_validator(mode="after")
    def _interval_rises(self) -> Self:
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"interval = {self.interval}: the first must not exceed the second")
        return self

    def guided_at(self, time: float) -> bool:
        """Whether guidance applies at `time` in (0, 1]."""
        return self.guidance > 0 and self.interval[0] <= time <= self.interval[1]

    def frame_steps(self) -> tuple[int, ...]:
        """After how many steps a frame is shown."""
        frames = min(self.steps, _FRAMES)
        return tuple(self.steps * (number + 1) // frames for number in range(frames))


def times_of(model: DitModel, steps: int) -> tuple[float, ...]:
    """The times in (0, 1] at which a sampler of so many steps asks the model, 1 first.

    A discrete schedule has the times 1 / N, 2 / N, …, 1. Raises ValueError where it has too few.
    """
    if model.prediction == "velocity":
        return tuple(1 - number / steps for number in range(steps))
    total = model.schedule_steps
    if steps > total:
        raise ValueError(
            f"steps = {steps}: the model was trained on a schedule of {total}; use at most {total}"
        )
    spacing = (total - 1) / max(1, steps - 1)
    return tuple((total - round(number * spacing)) / total for number in range(steps))


def tiny_dit(depth: int, width_per_depth: int = 8) -> DitModel:
    """A size that a CPU can train: width 8 d, flow matching, each cell of the grid a position."""
    return DitModel(depth=depth, width_per_depth=width_per_depth, time_channels=32)


# Depth, width, heads of DiT (arXiv 2212.09748, table 1).
_PUBLISHED = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


def published_dit(size: str, patch: int) -> DitModel:
    """A published DiT: "S", "B", "L" or "XL", with patches of side 2, 4 or 8."""
    if size not in _PUBLISHED:
        raise ValueError(f"DiT {size}: the sizes are {', '.join(_PUBLISHED)}")
    depth, width, heads = _PUBLISHED[size]
    return DitModel(
        depth=depth,
        fixed_width=width,
        fixed_heads=heads,
        patch=patch,
        prediction="epsilon",
        learned_variance=True,
    )
