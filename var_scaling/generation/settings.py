"""How a model is sampled from, scale by scale (VAR.md 1.2, "Sampling"). No torch."""

from dataclasses import dataclass
from typing import NamedTuple

from pydantic import NonNegativeInt

from var_scaling.recipe import NonNegativeFloat, PositiveFloat, Precision, Share
from var_scaling.record import Record

_MIXED_AT_FIRST, _MIXED_LESS, _MIXED_AT_LEAST = 0.27, 0.95, 0.005  # as released


class AtScale(NamedTuple):
    """The settings of one scale. `tau` is None where codes are drawn and not mixed."""

    guidance: float  # t of (1 + t) × conditional - t × unconditional
    top_k: int  # 0: all
    top_p: float  # 0: all
    temperature: float
    sharpening: float  # of the logits before they are mixed
    tau: float | None  # of the Gumbel softmax that mixes codes


class Sampling(Record):
    """What may be set about a sample besides its seed, class and index.

    A value that is a list has an entry for each scale. A single `guidance` grows linearly from 0 at
    the first scale to that at the last (`rising`), or is the same at all. The defaults are those of
    the released FID figures. `smooth` shows each finer scale a mixture of codes instead of those
    drawn: rounder shapes, for pictures, not for figures.
    """

    guidance: NonNegativeFloat | tuple[NonNegativeFloat, ...] = 1.5
    rising: bool = True
    top_k: NonNegativeInt | tuple[NonNegativeInt, ...] = 900
    top_p: Share | tuple[Share, ...] = 0.96
    temperature: PositiveFloat | tuple[PositiveFloat, ...] = 1.0
    smooth: bool = False
    precision: Precision = "fp32"

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


def _one(sampling: Sampling, name: str, k: int, scales: int) -> float:
    value = getattr(sampling, name)
    if not isinstance(value, tuple):
        return float(value)
    if len(value) != scales:
        raise ValueError(
            f"{name} = {list(value)}: {len(value)} values, but the model has {scales} scales"
        )
    return float(value[k])


@dataclass(frozen=True)
class Request:
    """One image to be: the class it is to show (the number of classes: none), and which of those.

    With a seed and the settings it says all that the image hangs on.
    """

    label: int
    index: int
