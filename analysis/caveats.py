"""What a reader must know before the laws of a study: contradictions first, then limitations."""

from collections.abc import Sequence

import pandas as pd

from analysis.law_result import METRICS, VARIABLES
from analysis.selection.rates import rate_sweeps
from analysis.study import Study
from analysis.table.plausible import Caveat
from var_scaling.text import counted

_UNFINISHED = ("running", "failed", "waiting")
_FEW_SIZES = 5
_NAMED_SIZES = 3


def caveats(study: Study, trials: Sequence[str] = ()) -> tuple[Caveat, ...]:
    """All caveats of a study; those with `metrics` say why no law is announced, and come first.

    `trials`: names of all planned trials.
    """
    finals = study.table.finals
    if finals.empty:
        none = Caveat("no_run", "No trial has finished, so there is no law yet.")
        return (none, *_missing(study, trials))
    lines = [*_repeats(finals), *_seeds(finals), *_sizes(finals), *_mixtures(finals)]
    found = (
        *study.implausible, *_not_falling(study), *_rejected_floor(study), *lines,
        *_missing(study, trials),
    )  # fmt: skip
    return tuple(sorted(found, key=lambda caveat: not caveat.metrics))


def _not_falling(study: Study) -> list[Caveat]:
    """A caveat for each pure law, and each surface that is the main result, that only its own fit
    contradicts, not already the table.

    Of runs of different D a law in N alone is not announced, so its fit contradicts nothing.
    """
    surfaces = [
        Caveat(
            "not_a_law",
            f"{study.surface_label(metric)} is no law: {'; '.join(surface.own_contradictions)}.",
            tuple(dict.fromkeys(surface.trials)), (metric,),
        )
        for metric, surface in study.surfaces.items()
        if metric in study.mixed_data
        and surface.own_contradictions and not surface.contradictions
    ]  # fmt: skip
    return surfaces + [
        Caveat(
            "not_a_law", f"{law.label} is no law: {'; '.join(law.own_contradictions)}.",
            tuple(dict.fromkeys(law.trials)), (law.metric,),
        )
        for law in study.findings
        if law.fit.law.name == "pure" and law.own_contradictions and not law.contradictions
        and not study.is_mixed(law)
    ]  # fmt: skip


def _rejected_floor(study: Study) -> list[Caveat]:
    """A caveat for each law whose fixed E the points reject."""
    found = []
    for (metric, variable), choice in study.choices.items():
        fixed, free = choice.get("floor fixed"), choice.get("floor")
        if fixed is None or free is None or free.E_interval is None:
            continue
        span = free.E_interval
        if not span.low <= fixed.fit.E <= span.high:
            text = (
                f"{METRICS[metric][0]}({VARIABLES[variable][0]}): these points reject the fixed E ="
                f" {fixed.fit.E:.4g}; the 95 % interval of a fitted E is {span.low:.4g} to "
                f"{span.high:.4g}."
            )
            found.append(Caveat("fixed_floor", text))
    return found


def _repeats(finals: pd.DataFrame) -> list[Caveat]:
    repeated = finals[finals.epochs > 1.0 + 1e-9]
    if repeated.empty:
        return []
    most = repeated.epochs.max()
    times = f"{most:.1f}" if most < 1e6 else f"{most:.4g}"
    text = (
        f"Images were seen up to {times} times in {counted(len(repeated), 'run')}: "
        "over-fitting may look like an irreducible loss E."
    )
    return [Caveat("repeated_images", text, _names(repeated))]


def _seeds(finals: pd.DataFrame) -> list[Caveat]:
    if finals.seed.isna().all():
        text = "The seeds are unknown: the intervals may leave out the noise between seeds."
    elif finals.seed.nunique() == 1:
        text = "One seed for each size: the intervals leave out the noise between seeds."
    else:
        return []
    return [Caveat("seeds", text)]


def _sizes(finals: pd.DataFrame) -> list[Caveat]:
    known = [name for name in VARIABLES if finals[name].notna().any()]
    if not known:
        return []
    found = []
    if (count := finals[known[0]].nunique()) < _FEW_SIZES:
        few = f"{count} size{'s' * (count > 1)}"
        text = f"Only {few}: a straight line through them is weak evidence of a law."
        found.append(Caveat("few_sizes", text))
    at_edge = [each for each in rate_sweeps(finals, known[0]) if each.at_edge]
    if at_edge:
        rates = ", ".join(
            f"{each.best:.4g} of N = {each.size:,.10g}" for each in at_edge[:_NAMED_SIZES]
        )
        more = len(at_edge) - _NAMED_SIZES
        text = (
            f"The best rate is at the edge of the tried range ({rates}"
            + (f" and of {more} more sizes" if more > 0 else "")
            + "): a rate outside it may be better."
        )
        sizes = [each.size for each in at_edge]
        found.append(Caveat("rate_at_edge", text, _names(finals[finals[known[0]].isin(sizes)])))
    return found


def _mixtures(finals: pd.DataFrame) -> list[Caveat]:
    """Caveats of pooled runs: scores of different tokens or images are not comparable."""
    found = []
    for column, what in (
        ("tokenizer", "tokenizers"),
        ("data", "data sets"),
        ("family", "families"),
    ):
        names = sorted(finals[column].dropna().unique())
        if len(names) > 1:
            text = f"Runs of several {what} are pooled: {', '.join(names)}."
            found.append(Caveat("pooled", text))
    return found


def _missing(study: Study, trials: Sequence[str]) -> list[Caveat]:
    rows = study.table.rows
    unfinished = tuple(sorted(rows[rows.status.isin(_UNFINISHED)].trial.unique()))
    found = []
    if unfinished:
        text = f"Not finished, so not in any law: {', '.join(unfinished)}."
        found.append(Caveat("unfinished", text, unfinished))
    absent = tuple(name for name in trials if name not in set(rows.trial))
    if absent:
        text = f"Without any usable evaluation, so not in any law: {', '.join(absent)}."
        found.append(Caveat("absent", text, absent))
    return found


def _names(rows: pd.DataFrame) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rows.trial.astype(str)))
