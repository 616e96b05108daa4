"""The results of a study in sentences: the main result, and a verdict on each metric."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.caveats import caveats
from analysis.compute_optimal.surface import SurfaceLaw
from analysis.format import exponent, percent, significant
from analysis.law_result import METRICS, VARIABLES, LawResult
from analysis.selection.select import Choice, has_irreducible_loss
from analysis.study import Study

_NO_LAW = "No law:"


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
        size_variables = [v for v in VARIABLES if v != "train_flops" and study.any_law(metric, v)]
        if metric in study.surfaces and not size_variables:  # the only law that was requested
            size_variables = [study.size]
        in_compute = ["train_flops"] if study.any_law(metric, "train_flops") else []
        results += [
            _verdict(study, metric, variable) for variable in (*size_variables[:1], *in_compute)
        ]
    return tuple(results)


@dataclass(frozen=True)
class MainResult:
    """The first screen of a report: one sentence with its interval, and what is not known."""

    sentence: str
    contradicted: tuple[str, ...]  # why other laws are not announced
    undetermined: tuple[str, ...]
    limits: tuple[str, ...]  # of the data


def main_result(study: Study, trials: Sequence[str] = ()) -> MainResult:
    """The main result of a study in one sentence, and what its data leave open.

    `trials`: names of all planned trials.
    """
    found = caveats(study, trials)
    limits = tuple(caveat.text for caveat in found if not caveat.metrics)
    contradicted = [caveat for caveat in found if caveat.metrics]
    if study.main is None:
        sentence, verdict = "No law could be fitted.", None
    else:
        verdict = _verdict(study, *study.main)
        sentence = _main_sentence(study, verdict)
        of_main = [caveat for caveat in contradicted if verdict.metric in caveat.metrics]
        if of_main and verdict.headline.startswith(_NO_LAW):
            sentence = f"No law is announced. {of_main[0].text}"
            contradicted.remove(of_main[0])
    notes = tuple(caveat.text for caveat in contradicted)
    return MainResult(sentence, notes, _open_questions(study, verdict), limits)


def _main_sentence(study: Study, verdict: MetricVerdict) -> str:
    metric, variable = verdict.metric, verdict.variable
    law = study.any_law(metric, variable)
    if law is None or law.no_law or study.is_mixed(law):
        return verdict.headline
    symbol, what, _ = METRICS[metric]
    name, counted = VARIABLES[variable]
    pure, with_E = study.get(metric, variable, "pure"), study.get(metric, variable, "floor")
    falls = f"{symbol} ({what}) falls as a power law of {name} ({counted}){_at_tokens(study, law)}"
    if verdict.preferred == "floor" and with_E is not None:
        return f"{falls} {_above(with_E)}: {_exponent(with_E)}; {_halving(with_E)}."
    if pure is None:
        return f"{falls}{' ' + _above(law) if law.fit.law.floor else ''}: {_exponent(law)}."
    if verdict.preferred == "pure":
        none = "the data need no irreducible loss"
        return f"{falls}: {_exponent(pure)}; {_halving(pure)}; {none}."
    if with_E is None:
        return f"{falls}: {_exponent(pure)}; it was not compared with other laws."
    bend = any("curves downwards" in doubt for doubt in verdict.unknown)
    bent = " Log L curves downwards, which neither law describes." if bend else ""
    return f"{falls}: {_exponent(pure)}. {_undecided(with_E)}{bent}"


def _at_tokens(study: Study, law: LawResult) -> str:
    """The number of tokens, if it is that of all runs of a law in N: E depends on it."""
    tokens = study.table.finals.tokens_seen.dropna()
    if law.variable == "train_flops" or tokens.empty or tokens.max() > 1.01 * tokens.min():
        return ""
    return f" at D = {significant(float(tokens.median()), 3)} tokens"


def _undecided(with_E: LawResult) -> str:
    """What is known of the irreducible loss where the data do not decide."""
    alpha, E = (with_E.intervals.get(name) for name in ("alpha", "E"))
    if alpha is None or E is None:
        return f"The data do not decide whether it is one {_above(with_E)}: {_exponent(with_E)}."
    if has_irreducible_loss(with_E.fit):
        return f"Or, which the data do not decide, {_above(with_E)}: {_exponent(with_E)}."
    most = f"up to {significant(E.high)}" if math.isfinite(E.high) else "of any size"
    ends = f"up to {exponent(alpha.high)}" if math.isfinite(alpha.high) else "of any size"
    return (
        f"The data do not exclude an irreducible loss {most}, with which the exponent would be "
        f"{ends}."
    )


def _halving(finding: LawResult) -> str:
    """What twice the size does to the loss."""
    part = "the part above E" if finding.fit.law.floor else "it"
    given = finding.intervals.get("alpha")
    fall = percent(1 - 2.0**-finding.fit.alpha, 1)
    ends = ""
    if given is not None and math.isfinite(given.low) and math.isfinite(given.high):
        ends = f" ({percent(1 - 2.0**-given.low, 1)} to {percent(1 - 2.0**-given.high, 1)})"
    return f"each doubling lowers {part} by {fall}{ends}"


def _open_questions(study: Study, main: MetricVerdict | None) -> tuple[str, ...]:
    """What the data leave open: of the main result with reasons, of others by name."""
    questions = list[str]()
    undecided = list[str]()
    for verdict in verdicts(study):
        label = f"{METRICS[verdict.metric][0]}({VARIABLES[verdict.variable][0]})"
        if not verdict.unknown:
            continue
        if main is not None and verdict == main:
            questions.append(f"{label}: {'; '.join(verdict.unknown)}.")
        elif verdict.preferred is None:
            undecided.append(label)
    if undecided:
        questions.append(f"Whether there is an irreducible loss in {', '.join(undecided)}.")
    if study.refused:
        first = study.refused[0]
        others = f" (and {len(study.refused) - 1} more, below)" if len(study.refused) > 1 else ""
        questions.append(f"Not fitted: {first}{others}.")
    if missing := unmeasured(study):
        questions.append(f"Not in this table: {', '.join(missing)}.")
    return tuple(questions)


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
    law = study.any_law(metric, variable)
    if law is not None and _is_no_law(study, law):
        return MetricVerdict(metric, variable, f"{_NO_LAW} {law.no_law}.", (), (), None)
    if law is None or study.is_mixed(law):
        return MetricVerdict(metric, variable, _mixed(study, metric, variable), (), (), None)
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


def _is_no_law(study: Study, law: LawResult) -> bool:
    """Whether the data contradict this law. Of runs of different D they contradict a law in N alone
    only together with the surface: it is not announced anyway.
    """
    only_mixed = study.is_mixed(law) and not law.contradictions
    return bool(law.no_law) and not only_mixed


def announced_laws(study: Study, metric: str, variable: str) -> tuple[str, ...]:
    """The forms that the verdict on this metric and variable announces: "pure", "floor" or both, if
    the data do not decide; "surface"; empty if there is no law.
    """
    law, choice = study.any_law(metric, variable), study.choices.get((metric, variable))
    if law is not None and _is_no_law(study, law):
        return ()
    if law is None or study.is_mixed(law):
        surface = study.surfaces.get(metric)
        known = surface is not None and not surface.no_law and variable != "train_flops"
        return ("surface",) if known else ()
    fitted = tuple(name for name in ("pure", "floor") if study.get(metric, variable, name))
    preferred = choice.preferred if choice else None
    return (preferred,) if preferred in fitted else fitted or (law.fit.law.name,)


def _mixed(study: Study, metric: str, variable: str) -> str:
    """The exponents of the surface, and why there is no law in N alone."""
    alone, surface = "", study.surfaces.get(metric)
    if metric in study.mixed_data:
        verdict = study.verdict(metric, variable)
        alone = f"{verdict[0].upper()}{verdict[1:]}."
    if surface is None:
        return alone
    if surface.no_law:
        return f"{_NO_LAW} {study.surface_label(metric)}: {surface.no_law}. {alone}".strip()
    alpha, beta = (surface.intervals[name] for name in ("alpha", "beta"))
    return (
        f"{study.surface_label(metric)}: a power law in both N and D, α = "
        f"{exponent(surface.fit.alpha)} (95\u00a0%: {exponent(alpha.low)} to "
        f"{exponent(alpha.high)}) and β = {exponent(surface.fit['beta'])} ({exponent(beta.low)} to "
        f"{exponent(beta.high)}), {_above(surface)}. {alone}"
    ).strip()


def _exponent(finding: LawResult) -> str:
    given = finding.intervals.get("alpha")
    if given is None:
        return f"exponent {exponent(finding.fit.alpha)}, without an interval"
    ends = f"{exponent(given.low)} to {exponent(given.high)}"
    return f"exponent {exponent(finding.fit.alpha)} ({100 * given.level:g}\u00a0%: {ends})"


def _above(finding: LawResult | SurfaceLaw) -> str:
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
