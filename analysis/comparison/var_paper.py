"""Our laws compared with those of the VAR paper (arXiv 2404.02905, Eq. 3-6, Fig. 5 and 6)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import FLOOR
from analysis.fitting.points import FitError
from analysis.law_result import LawResult
from analysis.selection.select import not_a_law
from analysis.uncertainty.intervals import Interval, interval

NOTE = (
    "The paper's L is not the test cross-entropy CE but L = CE − E, with E = 4.5 nats (last scale) "
    "and 5 nats (all scales) estimated from the tokenizer's tokens (according to its author, in "
    "the public issues). So its exponents can be compared with those of a law with an irreducible "
    "loss E. Its β cannot be compared with that of another tokenizer. The printed equations in C "
    "swap “last” and “all”; the values here are those of Fig. 6, which agrees with the laws in N."
)


@dataclass(frozen=True)
class PublishedLaw:
    """One law as printed: metric = (β x)^-α, with x in `unit`."""

    metric: str
    variable: str  # N or C
    beta: float
    alpha: float
    unit: float  # of x, in parameters or FLOPs
    unit_name: str
    E: float | None  # the E that the paper subtracted, in nats
    r: float  # printed, or said to be near this value
    digit: float = 0.01  # one unit in the last printed place of α


# The paper gives N in billions of parameters and C in PFLOP.
_N, _C = 1e9, 1e15
PUBLISHED_LAWS = (
    PublishedLaw("val_loss_last", "N", 2.0, 0.23, _N, "1e9 parameters", 4.5, -0.998),
    PublishedLaw("val_loss", "N", 2.5, 0.20, _N, "1e9 parameters", 5.0, -0.998),
    PublishedLaw("val_error_last", "N", 4.9e2, 0.016, _N, "1e9 parameters", None, -0.998, 1e-3),
    PublishedLaw("val_error", "N", 6.5e2, 0.010, _N, "1e9 parameters", None, -0.998, 1e-3),
    PublishedLaw("val_loss_last", "C", 1.5e-5, 0.16, _C, "PFLOP", 4.5, -0.99),
    PublishedLaw("val_loss", "C", 2.2e-5, 0.13, _C, "PFLOP", 5.0, -0.99),
    PublishedLaw("val_error_last", "C", 4.4e-2, 0.011, _C, "PFLOP", None, -0.99, 1e-3),
    PublishedLaw("val_error", "C", 8.1e-2, 0.0067, _C, "PFLOP", None, -0.99, 1e-4),
)
_SYMBOLS = {"params_blocks": "N", "params_total": "N", "train_flops": "C"}


@dataclass(frozen=True)
class PaperComparison:
    """A law of the paper, and our law of the same metric under one way of counting x."""

    printed: PublishedLaw
    variable: str  # our column of x
    form: str  # E = 0; E fitted; E as in the paper
    alpha: float | None
    low: float | None
    high: float | None
    beta: float | None  # per `printed.unit`
    E: float
    r: float | None
    why_not: str = ""  # why there is no fit, or why it cannot be compared

    @property
    def agrees(self) -> bool | None:
        """Whether our interval overlaps the printed exponent ± half a unit in its last place."""
        if self.why_not or self.low is None or self.high is None:
            return None
        if not math.isfinite(self.high - self.low):  # an interval without an end
            return None
        # The printed exponent is rounded: it stands for half a digit on either side.
        half = self.printed.digit / 2
        return self.low - half <= self.printed.alpha <= self.high + half

    def as_dict(self) -> dict[str, Any]:
        return {
            "metric": self.printed.metric, "x": self.variable, "form": self.form,
            "alpha_paper": self.printed.alpha, "beta_paper": self.printed.beta,
            "unit_of_x": self.printed.unit_name, "E_paper": self.printed.E,
            "alpha_ours": self.alpha, "alpha_low": self.low, "alpha_high": self.high,
            "beta_ours": self.beta, "E_ours": self.E, "r_ours": self.r,
            "agrees": self.agrees, "why_not": self.why_not,
        }  # fmt: skip


def paper_table(findings: Iterable[LawResult]) -> tuple[PaperComparison, ...]:
    """Each law of the paper with ours among the `findings` of a study.

    Our law is given with E = 0 (raw), with E fitted, and with the paper's E (if that is below our
    losses), under each way of counting x for which there are laws.
    """
    ours = {(each.metric, each.variable, each.fit.law.name): each for each in findings}
    comparisons = []
    for printed in PUBLISHED_LAWS:
        for column in (c for c, symbol in _SYMBOLS.items() if symbol == printed.variable):
            raw = ours.get((printed.metric, column, "pure"))
            if raw is None:
                continue
            alpha = raw.intervals.get("alpha")
            # What contradicts the law without E, a fall with x, contradicts all its forms.
            why = raw.no_law
            comparisons.append(_compared(printed, column, "raw, E = 0", raw.fit, alpha, why))
            fitted = ours.get((printed.metric, column, "floor"))
            if fitted is not None:
                alpha = fitted.intervals.get("alpha")
                of_fitted = why or fitted.no_law
                comparisons.append(
                    _compared(printed, column, "E fitted", fitted.fit, alpha, of_fitted)
                )
            if printed.E is not None:
                comparisons.append(_with_published_E(printed, column, raw, why))
    return tuple(comparisons)


def _with_published_E(
    printed: PublishedLaw, column: str, raw: LawResult, contradicted: str
) -> PaperComparison:
    form = f"E = {printed.E} as in the paper"
    points, E = raw.fit.data, printed.E or 0.0
    try:
        if raw.path is not None:
            raise FitError(
                "our law follows from the surface of all runs, and with this E from another one: "
                f"--fixed E={E:g} fits it"
            )
        fit = fit_law(FLOOR, points.x, points.y, raw.fit.objective, floor=E)
    except FitError as error:
        return PaperComparison(printed, column, form, None, None, None, None, E, None, str(error))
    # Points inside runs have no interval (frontier_law), whatever E is.
    alpha = interval(fit, "alpha") if "alpha" in raw.intervals else None
    why = contradicted or "; ".join(not_a_law(fit, alpha))
    return _compared(printed, column, form, fit, alpha, why)


def _compared(
    printed: PublishedLaw, column: str, form: str, fit: Fit, alpha: Interval | None,
    contradicted: str,
) -> PaperComparison:  # fmt: skip
    """Our law beside the printed one. `contradicted`: why ours is no law, or ""."""
    # β is per unit of x: ours per parameter or FLOP, the printed one per 1e9 or 1e15.
    beta = None if fit.paper_beta is None else fit.paper_beta * printed.unit
    # NaN, which is not equal to itself, becomes None.
    r = fit.r if fit.r == fit.r else None
    low, high = (None, None) if alpha is None else (alpha.low, alpha.high)
    if not contradicted and alpha is None:
        contradicted = "our α has no interval"
    elif not contradicted and alpha is not None and not math.isfinite(alpha.high - alpha.low):
        contradicted = "the interval of our α has no end"
    why_not = f"not comparable: {contradicted}" if contradicted else ""
    return PaperComparison(printed, column, form, fit.alpha, low, high, beta, fit.E, r, why_not)
