"""What a reader of a scaling law must be told, item by item: its value, or that it is not known."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from analysis.fitting.fit import CONVERGED, Fit
from analysis.fitting.objectives import OBJECTIVES
from analysis.report.format import fixed, signed, size
from analysis.study import METRICS, VARIABLES, LawResult, Study

UNKNOWN = "not known here"
_OBJECTIVES = {
    "squares": "sum of squared log residuals",
    "huber": "sum of Huber losses of log residuals",
    "absolute": "sum of absolute log residuals",
}
_STARTS = "from variable projection over a grid of exponents"


@dataclass(frozen=True)
class Item:
    """One line of the checklist: what a reader needs to judge a fit."""

    name: str
    value: str
    state: Literal["ok", "missing"]


def checklist(study: Study, provenance: Mapping[str, str] | None = None) -> tuple[Item, ...]:
    """All items, in a fixed order. `provenance`: what is known besides the table; "code" is read.

    An item is missing where neither the table nor the study knows it; what was only assumed of a
    third-party table is reported, as is what is missing.
    """
    values: dict[str, Callable[[Study], str | None]] = {
        "form": _form,
        "variables and counting": _variables,
        "data table": _table,
        "n": _n,
        "split": _split,
        "metric": _metric,
        "checkpoint rule": _checkpoint,
        "smoothing": _smoothing,
        "objective": _objective,
        "optimiser": _optimiser,
        "tolerances": _tolerances,
        "starts": _starts,
        "bounds": _bounds,
        "interval method": _intervals,
        "hold-out error": _held_out,
        "seeds": _seeds,
        "code of the runs": lambda given: _code(given.table.rows, provenance or {}),
        "code of the fits": lambda given: f"SHA-256 of analysis/*.py: {sources()}",
        "data fingerprint": lambda given: f"{given.table.fingerprint}, of the rows used",
    }
    found = []
    for name, of in values.items():
        value = of(study)
        known = value is not None and not value.startswith(UNKNOWN)
        found.append(Item(name, value or UNKNOWN, "ok" if known else "missing"))
    return tuple(found)


def sources() -> str:
    """First 12 hex of a SHA-256 over this package's Python files, names and all."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _fits(study: Study) -> list[Fit]:
    return [finding.fit for finding in study.findings]


def _form(study: Study) -> str | None:
    laws = {fit.law.name: fit.law.formula for fit in _fits(study)}
    return "; ".join(f"{name}: {formula}" for name, formula in laws.items()) or None


def _variables(study: Study) -> str | None:
    used = dict.fromkeys(finding.variable for finding in study.findings)
    if not used:
        return None
    shown = [f"{VARIABLES[name][0]}: {VARIABLES[name][1]} ({name})" for name in used]
    told = {
        f"{spec.variable} by {spec.name}": 0
        for found in study.conventions.values()
        for spec in found
        if spec.fit is not None
    }
    more = f"; the exponent under {len(told)} countings: {', '.join(told)}"
    return "; ".join(shown) + (more if len(told) > 1 else "; no other counting could be tried")


def _table(study: Study) -> str:
    table = study.table
    rows = f"{len(table.rows)} rows used, {len(table.dropped)} left out with a reason"
    return f"{table.source or 'given in memory'}, fingerprint {table.fingerprint}; {rows}"


def _n(study: Study) -> str | None:
    """Of the laws of each metric; one law may stand on fewer points than another."""
    found = {}
    for finding in study.findings:
        fit = finding.fit
        symbol = VARIABLES[finding.variable][0]
        found[f"{fit.points} points, {fit.sizes} sizes, {fit.decades:.1f} decades of {symbol}"] = 0
    return "; ".join(found) or None


def _split(study: Study) -> str | None:
    finals = study.table.finals
    images, names = finals.val_images.dropna().unique(), sorted(finals.data.dropna().unique())
    if not len(images):
        return f"{UNKNOWN}: the scores are called held out; on what, the table does not say"
    shown = " or ".join(f"{count:,.0f}" for count in sorted(images))
    return f"held-out images, {shown} of {', '.join(names) or 'data that have no name here'}"


def _metric(study: Study) -> str | None:
    used = dict.fromkeys(finding.metric for finding in study.findings)
    said = (f"{METRICS[m][0]}: {METRICS[m][1]} ({study.unit(m)})" for m in used)
    return "; ".join(said) or None


def _checkpoint(study: Study) -> str:
    assumed = set(study.table.assumed) & {"step", "steps"}
    if "step" in assumed:
        return f"{UNKNOWN}: each row is taken for the end of its run"
    if "steps" in assumed:
        return f"{UNKNOWN}: the last row of each run is taken for its end"
    return "the end of each finished run (step = steps); none is picked by its loss"


def _smoothing(study: Study) -> str:
    found = {f"{each.smoothing:g} decades of compute" for each in study.frontiers.values()
             if each.smoothing > 0}  # fmt: skip
    along = f"; along the frontier: {', '.join(sorted(found))}" if found else ""
    return f"none of the points of laws in size{along}" if found else "none"


def _objective(study: Study) -> str:
    said = f"{_OBJECTIVES[study.objective]}, log(measured / predicted)"
    delta = OBJECTIVES[study.objective].delta
    return f"{said}, δ = {delta:g}" if study.objective == "huber" else said


def _optimiser(study: Study) -> str | None:
    if not study.findings:
        return None
    return "damped Newton steps with exact gradients and curvature, in centred logs"


def _tolerances(study: Study) -> str | None:
    gradients = [fit.certificate.gradient for fit in _fits(study)]
    if not gradients:
        return None
    return f"relative gradient below {CONVERGED:g}; the largest reached is {max(gradients):.0e}"


def _starts(study: Study) -> str | None:
    told = [fit.certificate for fit in _fits(study)]
    if not told:
        return None
    counts = sorted({each.starts for each in told})
    agreed = min(each.agreed for each in told)
    shown = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"{shown} a fit, {_STARTS}; at least {agreed:.0%} reached the best optimum"


def _bounds(study: Study) -> str | None:
    if not study.findings:
        return None
    hit = [f"{f.label}, {f.fit.law.name}: {', '.join(f.fit.certificate.bounds)}"
           for f in study.findings if f.fit.certificate.bounds]  # fmt: skip
    steepest = float(_fits(study)[0].given.points.bounds[1][1])
    allowed = f"coefficients positive, exponents within ±{steepest:g}, 0 ≤ E below the data"
    return f"{allowed}; resting there: {'; '.join(hit) or 'none'}"


def _intervals(study: Study) -> str | None:
    given = [each for finding in study.findings for each in finding.intervals.values()]
    methods = {f"{100 * each.level:g} % by {each.method}": 0 for each in given}
    drawn = {finding.resampled.get("method", "") for finding in study.findings} - {""}
    beside = f"; beside it: {'; '.join(sorted(drawn))}" if drawn else ""
    return "; ".join(methods) + beside if methods else None


def _held_out(study: Study) -> str | None:
    """Of the first metric in its first variable: each law's error at the largest size."""
    told: list[LawResult] = [finding for finding in study.findings if finding.held_out]
    first = [f for f in told if (f.metric, f.variable) == (told[0].metric, told[0].variable)]
    errors = [
        f"{each.fit.law.name} {signed(each.held_out.relative_error)}"
        for each in first
        if each.held_out
    ]
    if not errors or first[0].held_out is None:
        return None
    at = size(first[0].held_out.x)
    return f"{first[0].label} at the largest size ({at}), left out: {', '.join(errors)}"


def _seeds(study: Study) -> str | None:
    finals = study.table.finals
    if finals.seed.isna().all():
        return None
    labels = sorted(finals.seed.dropna().unique())
    shown = ", ".join(f"{label:g}" for label in labels[:12]) + (", …" if len(labels) > 12 else "")
    noise = study.noise.get("val_loss")
    if noise is None:
        return f"{len(labels)} ({shown}); no size was run with two"
    return f"{len(labels)} ({shown}); sd of log L_mean between seeds {fixed(noise.sd, 5)}"


def _code(rows: pd.DataFrame, provenance: Mapping[str, str]) -> str | None:
    commits = sorted(rows.commit.dropna().unique())
    return ", ".join(commits) or provenance.get("code") or None
