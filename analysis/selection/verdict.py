"""Pure or floor, in words with the reasons: a law is preferred where nothing contradicts it."""

from collections.abc import Mapping
from dataclasses import dataclass

_DECISIVE = 2.0  # of AICc (Burnham and Anderson 2002, 2.6): below, both are about as likely
_SMALL = 0.5  # of the least loss: a floor above it would double the exponent at the largest size
_UNLIKELY = 0.05


@dataclass(frozen=True)
class Evidence:
    """What one law's fit brings to the comparison; errors are relative, E in units of L."""

    aicc: float | None
    held_out: float | None  # signed error at the largest size
    rolling: float | None
    scatter: float  # rms relative error of the fit
    E: float
    E_span: tuple[float, float] | None
    r: float


@dataclass(frozen=True)
class Verdict:
    """`words` says all of it in a sentence or two; `doubts` is why none is preferred."""

    preferred: str | None  # "pure", "floor", or None where the data cannot tell
    reasons: tuple[str, ...]
    doubts: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        shown = ", ".join(self.reasons)
        if self.preferred is None:
            said = f"these data cannot tell: {'; '.join(self.doubts)}"
            return f"{said} ({shown})" if shown else said
        return f"{self.preferred} preferred: {shown}"


def verdict_of(
    pure: Evidence,
    floor: Evidence | None,
    curvature: tuple[float, float] | None,
    least_loss: float,
    refused: tuple[str, ...] = (),
) -> Verdict:
    """Compare the law with a floor with the one without.

    The floor is preferred if AICc favours it by 2 or more, E's interval excludes 0 and the largest
    size, left out, is not predicted worse. Pure is preferred if AICc favours it by 2 or more, no
    admissible E is above half the least loss (so the exponent could not double), and the largest
    size is not predicted worse. Errors at the largest size that differ by less than the scatter of
    the residuals are no vote. `curvature`: its t and p.
    """
    if floor is None:
        why = next((each for each in refused if each.startswith("floor: ")), "floor: not fitted")
        return Verdict(None, (), (f"the law with a floor cannot be fitted ({why[7:]})",))
    reasons, doubts, votes = [], [], set()
    if pure.aicc is None or floor.aicc is None:
        doubts.append("too few points for AICc")
    else:
        gain = floor.aicc - pure.aicc
        reasons.append(f"AICc {gain:+.1f} for the floor")
        if abs(gain) < _DECISIVE:
            doubts.append(f"AICc differs by less than {_DECISIVE:g}")
        else:
            votes.add("floor" if gain < 0 else "pure")
    for vote in (_held_out(pure, floor, reasons), _floor(floor, least_loss, reasons, doubts)):
        votes.update({vote} if vote else ())
    if curvature is not None:
        t, p = curvature
        reasons.append(f"curvature t = {t:.1f} (p = {p:.2g})")
        if t < 0 and p < _UNLIKELY:
            doubts.append("log L bends downwards, as neither law does")
    if len(votes) > 1:
        doubts.append("the criteria disagree")
    preferred = votes.pop() if len(votes) == 1 and not doubts else None
    return Verdict(preferred, tuple(reasons), tuple(doubts))


def remarks(evidence: Mapping[str, Evidence]) -> tuple[str, ...]:
    """What else the table shows: Pearson's r, the fixed floor, the law in the odds."""
    said = [
        "Pearson r hardly discriminates: "
        + ", ".join(f"{name} {each.r:.4f}" for name, each in evidence.items())
    ]
    fixed, free, logit = (evidence.get(name) for name in ("floor fixed", "floor", "logit"))
    if fixed is not None and free is not None and free.E_span is not None:
        low, high = free.E_span
        place = "inside" if low <= fixed.E <= high else "outside"
        said.append(f"the given E = {fixed.E:g} is {place} the interval of the free one")
    for name, one in (("floor fixed", fixed), ("logit", logit)):
        if one is not None:
            said.append(f"{name} against pure: {_against(one, evidence['pure'])}")
    return tuple(said)


def _against(one: Evidence, other: Evidence) -> str:
    found = []
    if one.aicc is not None and other.aicc is not None:
        found.append(f"AICc {one.aicc - other.aicc:+.1f}")
    if one.held_out is not None and other.held_out is not None:
        found.append(_errors(one, other))
    if one.rolling is not None and other.rolling is not None:
        found.append(f"rolling error {one.rolling:.2%} against {other.rolling:.2%}")
    return ", ".join(found) or "too few points to compare"


def _errors(one: Evidence, other: Evidence) -> str:
    return f"leave-largest-out {one.held_out:+.2%} against {other.held_out:+.2%}"


def _held_out(pure: Evidence, floor: Evidence, reasons: list[str]) -> str | None:
    """Who predicts the largest size better, if the difference is more than scatter."""
    if pure.rolling is not None and floor.rolling is not None:
        reasons.append(f"rolling error {floor.rolling:.2%} against {pure.rolling:.2%}")
    if pure.held_out is None or floor.held_out is None:
        return None
    reasons.append(_errors(floor, pure))
    gain = abs(pure.held_out) - abs(floor.held_out)
    if abs(gain) <= min(pure.scatter, floor.scatter):
        return None
    return "floor" if gain > 0 else "pure"


def _floor(floor: Evidence, least_loss: float, reasons: list[str], doubts: list[str]) -> str | None:
    """Whether the interval of E excludes 0, or all floors that would matter."""
    if floor.E_span is None:
        doubts.append("E has no interval")
        return None
    low, high = floor.E_span
    reasons.append(f"E from {low:.4g} to {high:.4g} (95 %)")
    if low > 0:
        return "floor"
    if high <= _SMALL * least_loss:
        return "pure"
    most = f"{high / least_loss:.0%} of the least loss" if high < least_loss else "nearly all of it"
    doubts.append(f"E may be 0 and may be {most}")
    return None
