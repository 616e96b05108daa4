"""The verdict, pure or floor, with reasons: a law is preferred if no criterion contradicts it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.format import percent, signed

_MIN_AICC_GAIN = (
    2.0  # of AICc (Burnham and Anderson 2002, 2.6); below it both laws are about equally likely
)
# The slope of log L at a size is α (1 - E / L): with E = L / 2 the exponent is twice the slope.
_LARGE_E = 0.5  # of the least loss; a larger E would at least double the exponent at that size
_SIGNIFICANCE = 0.05  # p value of the curvature test
_NAMES = {"pure": "without E", "floor": "with E"}  # "the law ..."


@dataclass(frozen=True)
class Evidence:
    """The statistics of one law for the comparison; errors are relative, E is in units of L."""

    aicc: float | None
    held_out: float | None  # signed error at the largest size, left out of the fit
    rolling: float | None  # mean absolute error above rising cuts
    scatter: float  # rms relative error of the fit
    E: float
    E_span: tuple[float, float] | None  # 95 % interval
    r: float  # Pearson's


@dataclass(frozen=True)
class Verdict:
    """The preferred law with the reasons; `doubts` is why none is preferred."""

    preferred: str | None  # "pure", "floor", or None where the data do not decide
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()  # why the data follow no law at all

    @property
    def summary(self) -> str:
        """The verdict in a sentence or two."""
        if self.contradictions:
            return f"no law: {'; '.join(self.contradictions)}"
        reasons = "; ".join(self.reasons)
        if self.preferred is None:
            text = f"these data do not decide: {'; '.join(self.doubts)}"
            return f"{text} ({reasons})" if reasons else text
        return f"the law {_NAMES[self.preferred]} is preferred: {reasons}"


def verdict_of(
    pure: Evidence,
    floor: Evidence | None,
    curvature: tuple[float, float] | None,
    least_loss: float,
    refused: tuple[str, ...] = (),
) -> Verdict:
    """Compare the law with an irreducible loss E ("floor") with the law without ("pure").

    "floor" is preferred if AICc favours it by at least 2, the interval of E excludes 0, and it does
    not predict the left-out largest size worse. "pure" is preferred if AICc favours it by at least
    2, no E of its interval is above half the least loss (so the exponent could not double), and it
    does not predict the largest size worse. Errors at the largest size that differ by less than the
    scatter of the residuals do not count. `curvature`: its t and p.
    """
    if floor is None:
        reason = next(
            (each.removeprefix("floor: ") for each in refused if each.startswith("floor: ")),
            "not fitted",
        )
        return Verdict(
            None, (), (f"the law with an irreducible loss E cannot be fitted ({reason})",)
        )
    reasons, doubts, votes = [], [], set()
    if pure.aicc is None or floor.aicc is None:
        doubts.append("too few points for AICc")
    else:
        gain = floor.aicc - pure.aicc
        reasons.append(_likelier(gain, _NAMES["floor"], _NAMES["pure"]))
        if abs(gain) < _MIN_AICC_GAIN:
            doubts.append(f"AICc differs by less than {_MIN_AICC_GAIN:g} and favours neither law")
        else:
            votes.add("floor" if gain < 0 else "pure")
    # Each criterion has at most one vote. Contradictory votes, like any doubt, prevent a verdict.
    for vote in (_held_out_vote(pure, floor, reasons), _E_vote(floor, least_loss, reasons, doubts)):
        votes.update({vote} if vote else ())
    if curvature is not None:
        t, p = curvature
        bend = "" if p < _SIGNIFICANCE else "no significant "
        reasons.append(f"{bend}curvature of log L (t = {t:.3g}, p = {p:.2g})")
        # The pure law is straight in logs, and E > 0 bends it upwards only.
        if t < 0 and p < _SIGNIFICANCE:
            doubts.append("log L curves downwards, which neither law can describe")
    if len(votes) > 1:
        doubts.append("the criteria disagree")
    preferred = votes.pop() if len(votes) == 1 and not doubts else None
    return Verdict(preferred, tuple(reasons), tuple(doubts))


def remarks(evidence: Mapping[str, Evidence]) -> tuple[str, ...]:
    """Further comparisons: Pearson's r, the law with a fixed E, the law in the odds."""
    lines = [
        "Pearson r hardly differs between laws: "
        + ", ".join(f"{name} {each.r:.4f}" for name, each in evidence.items())
    ]
    fixed, free, logit = (evidence.get(name) for name in ("floor fixed", "floor", "logit"))
    if fixed is not None and free is not None and free.E_span is not None:
        low, high = free.E_span
        position = "inside" if low <= fixed.E <= high else "outside"
        if not math.isfinite(high - low):
            position = "not comparable with, because it has no end,"
        lines.append(f"the fixed E = {fixed.E:g} is {position} the interval of the fitted E")
    for name, candidate in (("with the fixed E", fixed), ("of the odds", logit)):
        if candidate is not None:
            words = _comparison(candidate, evidence["pure"], name, _NAMES["pure"])
            lines.append(f"the law {name}: {words}")
    return tuple(lines)


def _comparison(first: Evidence, second: Evidence, name: str, other: str) -> str:
    """The likelihoods and the errors of prediction of two laws, in words."""
    parts = []
    if first.aicc is not None and second.aicc is not None:
        parts.append(_likelier(first.aicc - second.aicc, name, other))
    if first.held_out is not None and second.held_out is not None:
        parts.append(_errors(first, second, name, other))
    if first.rolling is not None and second.rolling is not None:
        parts.append(_rolling(first, second, name, other))
    return "; ".join(parts) or "too few points to compare"


def _likelier(gain: float, name: str, other: str) -> str:
    """Which of two laws AICc favours; `gain`: AICc of the first minus that of the other."""
    if abs(gain) < _MIN_AICC_GAIN:
        return f"AICc favours neither law (difference {abs(gain):.1f})"
    return f"AICc favours the law {name if gain < 0 else other} by {abs(gain):.4g}"


def _errors(first: Evidence, second: Evidence, name: str, other: str) -> str:
    """The errors of both laws at the largest size, in words."""
    return (
        f"largest size, left out of the fit, missed by {signed(first.held_out)} {name}, "
        f"{signed(second.held_out)} {other}"
    )


def _rolling(first: Evidence, second: Evidence, name: str, other: str) -> str:
    """The rolling errors of both laws, in words."""
    return f"rolling error {percent(first.rolling)} {name}, {percent(second.rolling)} {other}"


def _held_out_vote(pure: Evidence, floor: Evidence, reasons: list[str]) -> str | None:
    """The law that predicts the largest size better; None if both are equal within the scatter."""
    if pure.rolling is not None and floor.rolling is not None:
        reasons.append(_rolling(floor, pure, _NAMES["floor"], _NAMES["pure"]))
    if pure.held_out is None or floor.held_out is None:
        return None
    reasons.append(_errors(floor, pure, _NAMES["floor"], _NAMES["pure"]))
    gain = abs(pure.held_out) - abs(floor.held_out)
    # The largest size may be a single run: a difference within its scatter is no evidence.
    if abs(gain) <= min(pure.scatter, floor.scatter):
        return None
    return "floor" if gain > 0 else "pure"


def _E_vote(
    floor: Evidence, least_loss: float, reasons: list[str], doubts: list[str]
) -> str | None:
    """The law that the interval of E supports: it excludes 0, or every E large enough to matter."""
    if floor.E_span is None:
        doubts.append("E has no interval")
        return None
    low, high = floor.E_span
    reasons.append(f"E between {low:.4g} and {high:.4g} (95 %)")
    if low > 0:
        return "floor"
    # E = 0 is not rejected, and no accepted E would change the exponent much.
    if high <= _LARGE_E * least_loss:
        return "pure"
    largest = f"{high / least_loss:.0%}" if high < least_loss else "nearly all"
    doubts.append(f"E may be 0 and may be {largest} of the lowest measured loss")
    return None
