"""The results of a study in sentences: a verdict on each metric, and warnings."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.caveats import caveats
from analysis.report.format import exponent, significant
from analysis.selection.select import Choice
from analysis.study import METRICS, VARIABLES, LawResult, Study


@dataclass(frozen=True)
class MetricVerdict:
    """The verdict on one metric in one variable."""

    metric: str
    variable: str
    headline: str
    reasons: tuple[str, ...]  # evidence for the headline
    unknown: tuple[str, ...]  # questions that the data leave open
    preferred: str | None  # name of the preferred law


def verdicts(study: Study) -> tuple[MetricVerdict, ...]:
    """A verdict on each metric with a law: in N (all parameters if N is unknown), and in C."""
    results = []
    for metric in METRICS:
        size_variables = [v for v in VARIABLES if v != "train_flops" and _any_law(study, metric, v)]
        if metric in study.surfaces and not size_variables:  # the only law that was requested
            size_variables = [study.size]
        in_compute = ["train_flops"] if _any_law(study, metric, "train_flops") else []
        results += [
            _verdict(study, metric, variable) for variable in (*size_variables[:1], *in_compute)
        ]
    return tuple(results)


def unmeasured(study: Study) -> tuple[str, ...]:
    """Symbols of the metrics that no finished run of the table has."""
    finals = study.table.finals
    return tuple(
        symbol
        for metric, (symbol, *_) in METRICS.items()
        if metric not in finals or finals[metric].isna().all()
    )


def _verdict(study: Study, metric: str, variable: str) -> MetricVerdict:
    pure = study.get(metric, variable, "pure")
    with_E = study.get(metric, variable, "floor")
    choice = study.choices.get((metric, variable))
    preferred = choice.preferred if choice else None
    law = _any_law(study, metric, variable)
    if law is not None and law.no_law:
        return MetricVerdict(metric, variable, f"No law: {law.no_law}.", (), (), None)
    if law is None or study.is_mixed(law):
        return MetricVerdict(metric, variable, _mixed(study, metric, variable), (), (), None)
    if law.no_law:
        return MetricVerdict(metric, variable, f"No law: {law.no_law}.", (), (), None)
    if pure is None:  # only other laws were requested
        above = f" {_above(law)}" if law.fit.law.floor else " of the odds"
        return MetricVerdict(
            metric, variable, f"A power law{above}: {_exponent(law)}.", (), (), None
        )
    if preferred == "floor" and with_E is not None:
        headline = f"A power law {_above(with_E)}: {_exponent(with_E)}."
    elif preferred == "pure":
        headline = f"A pure power law: {_exponent(pure)}."
    elif with_E is not None:
        headline = (
            "A power law, but the data cannot decide whether there is an irreducible loss: "
            f"without one, {_exponent(pure)}; {_above(with_E)}, {_exponent(with_E)}."
        )
    else:
        headline = f"A pure power law, not compared with other laws: {_exponent(pure)}."
    selected = with_E if preferred == "floor" and with_E is not None else pure
    reasons = choice.judgement.reasons if choice else ()
    return MetricVerdict(metric, variable, headline, reasons, _unknown(selected, choice), preferred)


def announced_laws(study: Study, metric: str, variable: str) -> tuple[str, ...]:
    """The forms that the verdict on this metric and variable announces: "pure", "floor" or both, if
    the data do not decide; "surface"; empty if there is no law.
    """
    law, choice = _any_law(study, metric, variable), study.choices.get((metric, variable))
    if law is not None and law.no_law:
        return ()
    if law is None or study.is_mixed(law):
        return ("surface",) if metric in study.surfaces and variable != "train_flops" else ()
    fitted = tuple(name for name in ("pure", "floor") if study.get(metric, variable, name))
    preferred = choice.preferred if choice else None
    return (preferred,) if preferred in fitted else fitted or (law.fit.law.name,)


def _any_law(study: Study, metric: str, variable: str) -> LawResult | None:
    """The pure law, or else the first of the others."""
    laws = (study.get(metric, variable, name) for name in ("pure", "floor", "logit"))
    return next((law for law in laws if law is not None), None)


def _mixed(study: Study, metric: str, variable: str) -> str:
    """The exponents of the surface, and why there is no law in N alone."""
    alone, surface = "", study.surfaces.get(metric)
    if metric in study.mixed_data:
        verdict = study.verdict(metric, variable)
        alone = f"{verdict[0].upper()}{verdict[1:]}."
    if surface is None:
        return alone
    alpha, beta = (surface.intervals[name] for name in ("alpha", "beta"))
    return (
        f"{study.surface_label(metric)}: a power law in both N and D, α = "
        f"{exponent(surface.fit.alpha)} (95\u00a0%: {exponent(alpha.low)} to "
        f"{exponent(alpha.high)}) and β = {exponent(surface.fit['beta'])} ({exponent(beta.low)} to "
        f"{exponent(beta.high)}), above an irreducible loss E = {significant(surface.fit.E)}. "
        f"{alone}"
    ).strip()


def _exponent(finding: LawResult) -> str:
    given = finding.intervals.get("alpha")
    if given is None:
        return f"exponent {exponent(finding.fit.alpha)}, without an interval"
    ends = f"{exponent(given.low)} to {exponent(given.high)}"
    return f"exponent {exponent(finding.fit.alpha)} ({100 * given.level:g}\u00a0%: {ends})"


def _above(finding: LawResult) -> str:
    given = finding.intervals.get("E")
    ends = f" ({significant(given.low)} to {significant(given.high)})" if given else ""
    ends = " (fixed)" if finding.fit.floor is not None else ends
    return f"above an irreducible loss E = {significant(finding.fit.E)}{ends}"


def _unknown(finding: LawResult, choice: Choice | None) -> tuple[str, ...]:
    """The questions that the data leave open."""
    doubts = list(choice.judgement.doubts) if choice else ["no other law could be compared"]
    alpha = finding.intervals.get("alpha")
    if alpha is not None and alpha.low <= 0 <= alpha.high:
        doubts.append("whether the metric falls at all: the interval of the exponent contains 0")
    if finding.held_out is None:
        doubts.append("how well the law predicts: too few sizes to leave out the largest")
    return tuple(dict.fromkeys(doubts))


def warnings(study: Study, trials: Sequence[str] = ()) -> tuple[str, ...]:
    """The texts of all caveats, the contradictions first. `trials`: names of all planned trials."""
    return tuple(caveat.text for caveat in caveats(study, trials))
