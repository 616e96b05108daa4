"""What a study says, in sentences: a verdict on each metric, and what to know before believing."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.report.format import exponent, significant, size
from analysis.selection.rates import rate_sweeps
from analysis.selection.select import Choice
from analysis.study import METRICS, VARIABLES, LawResult, Study

_UNFINISHED = ("running", "failed", "waiting")
_FEW_SIZES = 5


@dataclass(frozen=True)
class Said:
    """Of one metric in one variable: the headline, what speaks for it, and what cannot be told."""

    metric: str
    variable: str
    headline: str
    reasons: tuple[str, ...]
    unknown: tuple[str, ...]
    preferred: str | None


def verdicts(study: Study) -> tuple[Said, ...]:
    """A verdict on each metric that has a law: in N (else in all parameters), and in compute."""
    found = []
    for metric in METRICS:
        of_size = [v for v in VARIABLES if v != "train_flops" and study.get(metric, v, "pure")]
        in_compute = ["train_flops"] if study.get(metric, "train_flops", "pure") else []
        found += [_said(study, metric, variable) for variable in (*of_size[:1], *in_compute)]
    return tuple(found)


def unmeasured(study: Study) -> tuple[str, ...]:
    """Symbols of the metrics of which the table knows no finished run."""
    finals = study.table.finals
    return tuple(
        symbol
        for metric, (symbol, *_) in METRICS.items()
        if metric not in finals or finals[metric].isna().all()
    )


def _said(study: Study, metric: str, variable: str) -> Said:
    pure = study.get(metric, variable, "pure")
    floor = study.get(metric, variable, "floor")
    choice = study.choices.get((metric, variable))
    preferred = choice.preferred if choice else None
    assert pure is not None
    if preferred == "floor" and floor is not None:
        headline = f"A power law {_above(floor)}: {_exponent(floor)}."
    elif preferred == "pure":
        headline = f"A pure power law: {_exponent(pure)}."
    elif floor is not None:
        headline = (
            f"A power law, but the data cannot tell whether there is a floor: without one, "
            f"{_exponent(pure)}; {_above(floor)}, {_exponent(floor)}."
        )
    else:
        headline = f"A pure power law, untested against others: {_exponent(pure)}."
    shown = floor if preferred == "floor" and floor is not None else pure
    reasons = choice.judgement.reasons if choice else ()
    return Said(metric, variable, headline, reasons, _unknown(shown, choice), preferred)


def _exponent(finding: LawResult) -> str:
    given = finding.intervals.get("alpha")
    if given is None:
        return f"exponent {exponent(finding.fit.alpha)}, without an interval"
    ends = f"{exponent(given.low)} to {exponent(given.high)}"
    return f"exponent {exponent(finding.fit.alpha)} ({100 * given.level:g}\u00a0%: {ends})"


def _above(finding: LawResult) -> str:
    given = finding.intervals.get("E")
    ends = f" ({significant(given.low)} to {significant(given.high)})" if given else ""
    return f"above a floor E = {significant(finding.fit.E)}{ends}"


def _unknown(shown: LawResult, choice: Choice | None) -> tuple[str, ...]:
    """What these data leave open."""
    found = list(choice.judgement.doubts) if choice else ["no other law could be compared"]
    alpha = shown.intervals.get("alpha")
    if alpha is not None and alpha.low <= 0 <= alpha.high:
        found.append("whether it falls at all: the exponent's interval holds 0")
    if shown.held_out is None:
        found.append("how well it foretells: too few sizes to leave the largest out")
    return tuple(dict.fromkeys(found))


# Warnings ----------------------------------------------------------------------------------------


def warnings(study: Study, trials: Sequence[str] = ()) -> tuple[str, ...]:
    """What a reader must know before believing the page. `trials`: all that were planned."""
    finals = study.table.finals
    found = [] if len(finals) else ["No trial has finished, so there is no law yet."]
    if len(finals):
        found += [*_repeats(finals), *_seeds(finals), *_sizes(finals), *_mixtures(finals)]
    return (*found, *_missing(study, trials))


def _repeats(finals: pd.DataFrame) -> list[str]:
    repeated = finals[finals.epochs > 1.0 + 1e-9]
    if repeated.empty:
        return []
    return [
        f"{len(repeated)} runs saw their images up to {repeated.epochs.max():.1f} times: "
        "a floor may be over-fitting."
    ]


def _seeds(finals: pd.DataFrame) -> list[str]:
    if finals.seed.isna().all():
        return ["The seeds are not known: whether the noise between seeds is in an interval, too."]
    one = finals.seed.nunique() == 1
    return ["One seed a size: the noise between seeds is not in any interval."] if one else []


def _sizes(finals: pd.DataFrame) -> list[str]:
    known = [name for name in VARIABLES if finals[name].notna().any()]
    found = []
    if known and (count := finals[known[0]].nunique()) < _FEW_SIZES:
        found.append(f"Only {count} sizes: a straight line is no evidence.")
    rates = finals.groupby(known[0]).learning_rate.nunique().max() if known else 0
    if rates > 1:
        found.append("Sizes have several learning rates: the laws pool them, good ones and bad.")
        edges = [each for each in rate_sweeps(finals, known[0]) if each.at_edge]
        found += [
            f"The best rate of N = {size(each.size)} is {significant(each.best)}, at the edge of "
            "those tried: one beyond may be better."
            for each in edges
        ]
    return found


def _mixtures(finals: pd.DataFrame) -> list[str]:
    """Scores of other tokens, or of other images, are on another scale."""
    found = []
    for column, what in (("tokenizer", "tokenizers"), ("data", "data sets"), ("family", "kinds")):
        names = sorted(finals[column].dropna().unique())
        if len(names) > 1:
            found.append(f"Runs of several {what} are pooled: {', '.join(names)}.")
    return found


def _missing(study: Study, trials: Sequence[str]) -> list[str]:
    rows = study.table.rows
    lost = sorted(rows[rows.status.isin(_UNFINISHED)].trial.unique())
    found = [f"Not finished, so not in any law: {', '.join(lost)}."] if lost else []
    none = [name for name in trials if name not in set(rows.trial)]
    if none:
        found.append(f"Without any usable evaluation, so not in any law: {', '.join(none)}.")
    return found
