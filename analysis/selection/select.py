"""Choice of the law: all candidates side by side, the evidence for each, and a verdict.

The verdict may be that the data do not decide. All candidates predict L, so their residuals of
log L, and the statistics computed from them, can be compared.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import FLOOR, LOGIT, PURE, Law
from analysis.fitting.objectives import SQUARES, Objective, objective_of
from analysis.fitting.points import FitError
from analysis.selection.holdout import HeldOut, leave_largest_out, rolling
from analysis.selection.influence import Influence, influence
from analysis.selection.verdict import Evidence, Verdict, remarks, verdict_of
from analysis.uncertainty.intervals import Interval, interval

_EXACT = 1e-12  # log residual; smaller ones are rounding error and do not distinguish laws
LIKELIHOODS = {
    "squares": "Gaussian log L, its variance fitted",
    "absolute": "Laplace log L, its width fitted",
    "huber": "log L with density exp(-Huber(r) / s) / Z(s), s fitted",
}


def likelihood_of(objective: Objective) -> str:
    """The likelihood of which a fit with this objective is the maximum, in words."""
    text = LIKELIHOODS[objective.kind]
    if objective.of_loss:
        text = text.replace("log L", "L")
    if objective.above != 1:
        text += f", -log density above the law times {objective.above:g}"
    return text


@dataclass(frozen=True)
class Candidate:
    """One law fitted to the points, with the statistics for the comparison."""

    name: str  # "pure", "floor", "floor fixed", "logit"
    # Of L(C) it may have the parameters of the surface. The other statistics are always those of
    # the fit to the points.
    fit: Fit
    aicc: float | None  # None where n - k < 2; only differences have a meaning
    r2: float  # of log L, so comparable between laws; `fit.r2` is not
    E_interval: Interval | None
    held_out: HeldOut | None  # the largest size, predicted from the others
    rolled: tuple[HeldOut, ...]  # the runs above each cut, predicted from those below
    rolling_error: (
        float | None
    )  # mean |relative error| over the cuts at which every candidate has a fit
    influence: tuple[Influence, ...]

    def as_dict(self) -> dict[str, Any]:
        """A row of the table of candidates; NaN where there is no value."""
        held_out, span, nan = self.held_out, self.E_interval, float("nan")
        return {
            "law": self.name,
            **self.fit.values,
            "E_low": span.low if span else nan,
            "E_high": span.high if span else nan,
            "r": self.fit.r,
            "r2_log_loss": self.r2,
            "rms_relative_error": self.fit.rms_relative_error,
            "aicc": nan if self.aicc is None else self.aicc,
            "leave_largest_out": held_out.relative_error if held_out else nan,
            "rolling_error": nan if self.rolling_error is None else self.rolling_error,
            "largest_influence": max((each.distance for each in self.influence), default=nan),
        }


@dataclass(frozen=True)
class Curvature:
    """The quadratic coefficient of log L in log x, by least squares.

    Positive where the curve flattens towards large x, as with an irreducible loss.
    """

    coefficient: float
    standard_error: float
    t: float
    p: float  # two-sided p value of zero curvature


@dataclass(frozen=True)
class Choice:
    """The candidates, the test of curvature, and the verdict."""

    candidates: tuple[Candidate, ...]
    refused: tuple[str, ...]  # candidates that could not be fitted, each with the reason
    curvature: Curvature | None
    likelihood: str  # of the AICc, in words
    rolled: int  # number of predictions in each rolling error
    judgement: Verdict

    @property
    def preferred(self) -> str | None:
        """The name of the preferred law, "pure" or "floor"; None where the data do not decide."""
        return self.judgement.preferred

    @property
    def verdict(self) -> str:
        """The verdict in words, with the reasons."""
        return self.judgement.summary

    def get(self, name: str) -> Candidate | None:
        return next((each for each in self.candidates if each.name == name), None)

    def rows(self) -> list[dict[str, Any]]:
        return [candidate.as_dict() for candidate in self.candidates]


def choose(
    x: ArrayLike,
    y: ArrayLike,
    objective: str | Objective = SQUARES,
    fixed_floor: float | None = None,
    *,
    error_rate: bool = False,
    interval_of: Callable[[Fit, str], Interval | None] = interval,
    weights: ArrayLike | None = None,
) -> Choice:
    """Compare a pure power law with one with an irreducible loss E, on points x, y, (n,) each.

    `fixed_floor`: adds the law with this fixed E. `error_rate`: y is an error rate between 0 and 1,
    so the law in the odds is added. `weights`: as for `fit_law`. `interval_of` gives E's interval.
    Raises FitError where the pure law cannot be fitted.
    """
    objective = objective_of(objective)
    laws: list[tuple[str, Law, float | None]] = [("pure", PURE, None), ("floor", FLOOR, None)]
    if fixed_floor is not None:
        laws.append(("floor fixed", FLOOR, fixed_floor))
    if error_rate:
        laws.append(("logit", LOGIT, None))
    fits: dict[str, Fit] = {}
    refused = []
    for name, law, floor in laws:
        try:
            fits[name] = fit_law(law, x, y, objective, floor=floor, weights=weights)
        except FitError as error:
            # The pure law is the reference of every comparison.
            if name == "pure":
                raise
            refused.append(f"{name}: {error}")
    rolled = {name: _rolled(fit) for name, fit in fits.items()}
    # A law with more parameters starts at a larger cut, so errors are averaged over the pairs that
    # all laws predicted.
    errors, pair_count = _rolling_errors(rolled)
    candidates = {
        name: _candidate(name, fit, rolled[name], errors[name], interval_of)
        for name, fit in fits.items()
    }
    curvature = curvature_of(x, y)
    evidence = {name: _evidence(candidate) for name, candidate in candidates.items()}
    least = float(np.min(np.asarray(y, dtype=float)))
    curvature_test = None if curvature is None else (curvature.t, curvature.p)
    verdict = verdict_of(
        evidence["pure"], evidence.get("floor"), curvature_test, least, tuple(refused)
    )
    return Choice(
        candidates=tuple(candidates.values()),
        refused=tuple(refused),
        curvature=curvature,
        likelihood=likelihood_of(objective),
        rolled=pair_count,
        judgement=replace(verdict, remarks=remarks(evidence)),
    )


def not_a_law(fit: Fit, alpha: Interval | None) -> tuple[str, ...]:
    """Why a fit is no law of a score that falls with x; empty if it is one."""
    reasons = (
        [f"its exponent is at its bound, α = {fit.alpha:.4g}"] if exponent_at_bound(fit) else []
    )
    if fit.alpha <= 0:
        reasons.append(f"its exponent is not positive, α = {round(fit.alpha, 12) + 0.0:.4g}")
    elif alpha is not None and not (alpha.low > 0):
        reasons.append(
            f"the interval of its exponent, {alpha.low:.3g} to {alpha.high:.3g}, contains 0"
        )
    return tuple(reasons)


def has_irreducible_loss(fit: Fit) -> bool:
    """Whether the fitted E is visible: near E = 0, the law equals the pure law."""
    # 1e-3: a smaller E changes no loss by more than 0.1 %.
    return fit.law.floor and 1e-3 * float(fit.data.y.min()) < fit.E


def exponent_at_bound(fit: Fit) -> bool:
    exponents = {exponent for _, exponent in fit.law.powers}
    return any(bound.split()[0] in exponents for bound in fit.certificate.bounds)


def aicc(fit: Fit) -> float | None:
    """Akaike's criterion with the correction for small n (Hurvich and Tsai 1989).

    None where n - k < 2. The likelihood is the one whose maximum the fit is (LIKELIHOODS); k
    includes its fitted width. Additive constants are omitted: n log(RSS / n) for squares and
    2 n log(Σ|r| / n) for absolute. The correction is exact only for Gaussian straight lines. Fits
    of residuals of L and of log L can be compared: all are likelihoods of log L, and the Jacobian
    of L is 0, because L is in units of its geometric mean.
    """
    fit.refuse_other_origin()
    # The scale of the residuals is fitted too and counts as a parameter.
    n, k = fit.points, fit.free + 1
    if n - k < 2:
        return None
    weights, above = fit.data.weights, fit.objective.above
    loss = float(np.mean(weights * fit.objective.value(fit.misfits)))
    if fit.objective.kind == "absolute":
        width = loss
        # -2 log likelihood at the best width, without constants. Below _EXACT rounding would
        # decide.
        misfit = 2 * n * (np.log(max(width, _EXACT)) + np.log((1 + 1 / above) / 2))
    elif np.isinf(fit.objective.delta):
        misfit = n * (np.log(max(loss, _EXACT**2)) + 2 * np.log((1 + above**-0.5) / 2))
    else:
        misfit = n * _least_huber(max(loss, _EXACT**2), fit.objective.delta, above)
    if fit.objective.of_loss:  # not 0 for the odds, whose logs are not centred
        misfit -= 2 * float(fit.data.points.z.sum())
    return float(misfit + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _least_huber(loss: float, delta: float, above: float) -> float:
    """-2 log likelihood per point for this mean Huber loss, minimised over the width s.

    `above`: the factor of the loss above the law, where the width is s / above.
    """

    def half_integral(s: float) -> float:
        # ∫ exp(-Huber(r) / s) dr over r > 0: a Gaussian of variance s up to δ, an exponential tail
        # beyond.
        middle = np.sqrt(np.pi * s / 2) * special.erf(delta / np.sqrt(2 * s))
        return float(middle + s / delta * np.exp(-(delta**2) / (2 * s)))

    def misfit(log_s: float) -> float:
        s = np.exp(log_s)
        return float(2 * np.log(half_integral(s) + half_integral(s / above)) + 2 * loss / s)

    centre = np.log(loss)  # s is between the mean loss (Laplace) and twice that (Gauss)
    return float(optimize.minimize_scalar(misfit, bounds=(centre - 1, centre + 2)).fun)


def curvature_of(x: ArrayLike, y: ArrayLike) -> Curvature | None:
    """Least squares of log y on 1, u, u², u = log x centred; None below 4 points or 3 sizes."""
    u = np.log(np.asarray(x, dtype=float))
    v = np.log(np.asarray(y, dtype=float))
    degrees_of_freedom = len(u) - 3
    if degrees_of_freedom < 1 or len(np.unique(u)) < 3:
        return None
    # Centred, because u and u² are nearly collinear over the few decades of a sweep.
    u = u - u.mean()
    line = np.column_stack([np.ones_like(u), u])
    # u² minus its projection on the line; its coefficient is the quadratic one (FWL theorem).
    quadratic = u**2 - line @ np.linalg.lstsq(line, u**2, rcond=None)[0]
    coefficient = float(quadratic @ v / (quadratic @ quadratic))
    residual = v - line @ np.linalg.lstsq(line, v, rcond=None)[0] - coefficient * quadratic
    variance = max(float(residual @ residual) / degrees_of_freedom, _EXACT**2)
    error = float(np.sqrt(variance / (quadratic @ quadratic)))
    t = coefficient / error
    return Curvature(coefficient, error, t, float(2 * stats.t.sf(abs(t), degrees_of_freedom)))


def _rolled(fit: Fit) -> tuple[HeldOut, ...]:
    """The predictions of `rolling`, without the refused cuts."""
    cuts = rolling(
        fit.law, fit.data.x, fit.data.y, fit.objective, floor=fit.floor, weights=fit.data.weights,
        intervals=False,
    )  # fmt: skip
    return tuple(each for each in cuts if isinstance(each, HeldOut))


def _rolling_errors(rolled: dict[str, tuple[HeldOut, ...]]) -> tuple[dict[str, float | None], int]:
    """Mean |relative error| of each candidate, over the (cut, point) pairs that all have; and the
    number of these pairs.

    A candidate with no prediction has the error None and does not reduce the pairs of the others.
    """
    errors_of = {
        name: {(each.cut, each.points): abs(each.relative_error) for each in predictions}
        for name, predictions in rolled.items()
    }
    pair_sets = [set(errors) for errors in errors_of.values() if errors]
    shared = set.intersection(*pair_sets) if pair_sets else set()
    mean = {
        name: float(np.mean([errors[pair] for pair in shared])) if errors and shared else None
        for name, errors in errors_of.items()
    }
    return mean, len(shared)


def _candidate(
    name: str, fit: Fit, rolled: tuple[HeldOut, ...], rolling_error: float | None,
    interval_of: Callable[[Fit, str], Interval | None],
) -> Candidate:  # fmt: skip
    """The candidate with all its statistics."""
    log_y = np.log(fit.data.y)
    # R² of log L for every law; fit.r2 is in the logs in which each law is a straight line, which
    # differ between laws.
    spread = float(np.sum((log_y - log_y.mean()) ** 2))
    held_out = leave_largest_out(
        fit.law, fit.data.x, fit.data.y, fit.objective, floor=fit.floor, weights=fit.data.weights
    )
    free_floor = fit.law.floor and fit.floor is None
    return Candidate(
        name=name,
        fit=fit,
        aicc=aicc(fit),
        r2=1 - float(np.sum(fit.residuals**2)) / spread if spread > 0 else float("nan"),
        E_interval=interval_of(fit, "E") if free_floor else None,
        held_out=held_out,
        rolled=rolled,
        rolling_error=rolling_error,
        influence=influence(fit) if fit.points > fit.free + 1 else (),
    )


def _evidence(candidate: Candidate) -> Evidence:
    """The statistics of a candidate that the verdict uses."""
    held_out, span = candidate.held_out, candidate.E_interval
    return Evidence(
        aicc=candidate.aicc,
        held_out=held_out.relative_error if held_out else None,
        rolling=candidate.rolling_error,
        scatter=candidate.fit.rms_relative_error,
        E=candidate.fit.E,
        E_span=(span.low, span.high) if span else None,
        r=candidate.fit.r,
    )
