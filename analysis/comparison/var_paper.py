"""Ours beside the laws that the VAR paper prints (arXiv 2404.02905, Eq. 3-6, Fig. 5 and 6)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import FLOOR
from analysis.fitting.points import FitError
from analysis.study import LawResult
from analysis.uncertainty.intervals import Interval, interval

NOTE = (
    "The paper's L is not the test cross-entropy but L = CE − E, with E = 4.5 nats (last scale) "
    "and 5 nats (all scales) taken from the tokenizer's own tokens (its author, in the public "
    "issues). So its exponents compare with a law with a floor, its β with nothing that has other "
    "tokens. The printed equations in C swap “last” and “all”; here they stand as in Fig. 6, which "
    "alone agrees with the laws in N."
)


@dataclass(frozen=True)
class Printed:
    """One law as printed: metric = (β x)^-α, with x in `unit`."""

    metric: str
    variable: str  # N or C
    beta: float
    alpha: float
    unit: float  # of x, in parameters or FLOPs
    unit_name: str
    floor: float | None  # the E that was taken off before, in nats
    r: float  # printed, or as the text says "near"
    digit: float = 0.01  # of the last printed place of α


_N, _C = 1e9, 1e15
PRINTED = (
    Printed("val_loss_last", "N", 2.0, 0.23, _N, "1e9 parameters", 4.5, -0.998),
    Printed("val_loss", "N", 2.5, 0.20, _N, "1e9 parameters", 5.0, -0.998),
    Printed("val_error_last", "N", 4.9e2, 0.016, _N, "1e9 parameters", None, -0.998, 1e-3),
    Printed("val_error", "N", 6.5e2, 0.010, _N, "1e9 parameters", None, -0.998, 1e-3),
    Printed("val_loss_last", "C", 1.5e-5, 0.16, _C, "PFLOP", 4.5, -0.99),
    Printed("val_loss", "C", 2.2e-5, 0.13, _C, "PFLOP", 5.0, -0.99),
    Printed("val_error_last", "C", 4.4e-2, 0.011, _C, "PFLOP", None, -0.99, 1e-3),
    Printed("val_error", "C", 8.1e-2, 0.0067, _C, "PFLOP", None, -0.99, 1e-4),
)
_OF = {"params_blocks": "N", "params_total": "N", "train_flops": "C"}


@dataclass(frozen=True)
class Beside:
    """A printed law, and ours of the same metric under one counting of x."""

    printed: Printed
    variable: str  # our column
    form: str  # raw; E fitted; E as in the paper
    alpha: float | None
    low: float | None
    high: float | None
    beta: float | None  # per `printed.unit`
    floor: float
    r: float | None
    why_not: str = ""  # where there is no number

    @property
    def agrees(self) -> bool | None:
        """Whether the printed exponent, as rounded as it is, reaches into our interval."""
        if self.low is None or self.high is None:
            return None
        half = self.printed.digit / 2
        return self.low - half <= self.printed.alpha <= self.high + half

    def as_dict(self) -> dict[str, Any]:
        return {
            "metric": self.printed.metric, "x": self.variable, "form": self.form,
            "alpha_paper": self.printed.alpha, "beta_paper": self.printed.beta,
            "unit_of_x": self.printed.unit_name, "E_paper": self.printed.floor,
            "alpha_ours": self.alpha, "alpha_low": self.low, "alpha_high": self.high,
            "beta_ours": self.beta, "E_ours": self.floor, "r_ours": self.r,
            "agrees": self.agrees, "why_not": self.why_not,
        }  # fmt: skip


def paper_table(findings: Iterable[LawResult]) -> tuple[Beside, ...]:
    """Each printed law beside ours, of what a study has found.

    Ours is shown raw (E = 0), with E fitted, and with the paper's E where that is below our losses,
    under each counting of x for which there are laws.
    """
    known = {(one.metric, one.variable, one.fit.law.name): one for one in findings}
    found = []
    for printed in PRINTED:
        for column in (c for c, symbol in _OF.items() if symbol == printed.variable):
            raw = known.get((printed.metric, column, "pure"))
            if raw is None:
                continue
            found.append(_beside(printed, column, "raw, E = 0", raw.fit, raw.intervals["alpha"]))
            floor = known.get((printed.metric, column, "floor"))
            if floor is not None:
                alpha = floor.intervals["alpha"]
                found.append(_beside(printed, column, "E fitted", floor.fit, alpha))
            if printed.floor is not None:
                found.append(_with_their_floor(printed, column, raw.fit))
    return tuple(found)


def _with_their_floor(printed: Printed, column: str, raw: Fit) -> Beside:
    form = f"E = {printed.floor} as in the paper"
    try:
        fit = fit_law(FLOOR, raw.given.x, raw.given.y, raw.objective, floor=printed.floor)
    except FitError as error:
        floor = printed.floor or 0.0
        return Beside(printed, column, form, None, None, None, None, floor, None, str(error))
    return _beside(printed, column, form, fit, interval(fit, "alpha"))


def _beside(printed: Printed, column: str, form: str, fit: Fit, alpha: Interval) -> Beside:
    beta = None if fit.paper_beta is None else fit.paper_beta * printed.unit
    r = fit.r if fit.r == fit.r else None
    return Beside(printed, column, form, fit.alpha, alpha.low, alpha.high, beta, fit.E, r)
