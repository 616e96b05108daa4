"""The checklist of a report: what a reader needs to judge a scaling law, with missing items."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from analysis.fitting.fit import CONVERGED, Fit
from analysis.fitting.objectives import objective_of
from analysis.format import fixed, signed, size
from analysis.law_result import METRICS, VARIABLES, LawResult
from analysis.study import Study

UNKNOWN = "not known"
_OBJECTIVES = {
    "squares": "sum of squared residuals",
    "huber": "sum of Huber losses of residuals",
    "absolute": "sum of absolute residuals",
}
_STARTS = "from variable projection over a grid of exponents"


@dataclass(frozen=True)
class Item:
    """One line of the checklist."""

    name: str
    value: str
    state: Literal["ok", "missing"]


def checklist(study: Study, provenance: Mapping[str, str] | None = None) -> tuple[Item, ...]:
    """All items, in a fixed order. `provenance`: facts that are not in the table; its key "code" is
    used.

    An item is "missing" if neither the table nor the study has it. Assumptions about a third-party
    table are stated in the value and count as missing, too.
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
    items = []
    for name, describe in values.items():
        value = describe(study)
        known = value is not None and not value.startswith(UNKNOWN)
        items.append(Item(name, value or UNKNOWN, "ok" if known else "missing"))
    return tuple(items)


def sources() -> str:
    """First 12 hex digits of a SHA-256 over this package's Python files, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _fits(study: Study) -> list[Fit]:
    fits = [finding.fit for finding in study.findings]
    return fits + [law.fit for law in (*study.surfaces.values(), *study.forms)]


def _form(study: Study) -> str | None:
    laws = {fit.law.name: fit.law.formula for fit in _fits(study)}
    return "; ".join(f"{name}: {formula}" for name, formula in laws.items()) or None


def _variables(study: Study) -> str | None:
    used = dict.fromkeys(finding.variable for finding in study.findings)
    if not used:
        return None
    shown = [f"{VARIABLES[name][0]}: {VARIABLES[name][1]} ({name})" for name in used]
    conventions = dict.fromkeys(
        f"{convention.variable} by {convention.name}"
        for fitted in study.conventions.values()
        for convention in fitted
        if convention.fit is not None
    )
    if len(conventions) < 2:
        return "; ".join(shown) + "; no other counting could be fitted"
    names = f"{len(conventions)} countings: {', '.join(conventions)}"
    return "; ".join(shown) + f"; the exponent under {names}"


def _table(study: Study) -> str:
    table = study.table
    rows = f"{len(table.rows)} rows used, {len(table.dropped)} left out with a reason"
    return f"{table.source or 'given in memory'}, fingerprint {table.fingerprint}; {rows}"


def _n(study: Study) -> str | None:
    """Numbers of points and sizes; laws may have different ones."""
    counts = {}  # a dictionary: distinct texts in their order
    for finding in study.findings:
        fit = finding.fit
        symbol = VARIABLES[finding.variable][0]
        counts[f"{fit.points} points, {fit.sizes} sizes, {fit.decades:.1f} decades of {symbol}"] = 0
    for metric, surface in study.surfaces.items():
        counts[f"{surface.fit.points} points of {study.surface_label(metric)}"] = 0
    return "; ".join(counts) or None


def _split(study: Study) -> str | None:
    finals = study.table.finals
    images, names = finals.val_images.dropna().unique(), sorted(finals.data.dropna().unique())
    if not len(images):
        return f"{UNKNOWN}: the scores are said to be held out; the table does not name the images"
    shown = " or ".join(f"{count:,.0f}" for count in sorted(images))
    return f"held-out images, {shown} of {', '.join(names) or 'unnamed data'}"


def _metric(study: Study) -> str | None:
    used = dict.fromkeys(finding.metric for finding in study.findings)
    texts = (f"{METRICS[m][0]}: {METRICS[m][1]} ({study.unit(m)})" for m in used)
    return "; ".join(texts) or None


def _checkpoint(study: Study) -> str:
    assumed = set(study.table.assumed) & {"step", "steps"}
    if "step" in assumed:
        return f"{UNKNOWN}: each row is assumed to be the end of its run"
    if "steps" in assumed:
        return f"{UNKNOWN}: the last row of each run is assumed to be its end"
    return "the end of each finished run (step = steps); none is selected by its loss"


def _smoothing(study: Study) -> str:
    smoothings = {f"{each.smoothing:g} decades of compute" for each in study.frontiers.values()
             if each.smoothing > 0}  # fmt: skip
    frontier_text = f"; along the frontier: {', '.join(sorted(smoothings))}" if smoothings else ""
    return f"none of the points of laws in size{frontier_text}" if smoothings else "none"


def _objective(study: Study) -> str:
    objective = objective_of(study.objective)
    text = _OBJECTIVES[objective.kind]
    if objective.of_loss:
        text += " of L, (measured - predicted) / geometric mean of L"
    else:
        text = text.replace("residuals", "log residuals") + ", log(measured / predicted)"
    if objective.kind == "huber":
        text += f", δ = {objective.delta:g}"
    if objective.above != 1:
        text += f"; runs above the law count {objective.above:g} times"
    return text


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
    certificates = [fit.certificate for fit in _fits(study)]
    if not certificates:
        return None
    counts = sorted({each.starts for each in certificates})
    agreed = min(each.agreed for each in certificates)
    shown = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"{shown} for each fit, {_STARTS}; at least {agreed:.0%} reached the best optimum"


def _bounds(study: Study) -> str | None:
    if not study.findings:
        return None
    laws = [(f"{f.label}, {f.fit.law.name}", f.fit) for f in study.findings]
    laws += [(study.surface_label(metric), s.fit) for metric, s in study.surfaces.items()]
    hit = [
        f"{label}: {', '.join(fit.certificate.bounds)}"
        for label, fit in laws
        if fit.certificate.bounds
    ]
    steepest = float(_fits(study)[0].data.points.bounds[1][1])
    allowed = f"coefficients positive, exponents within ±{steepest:g}, 0 ≤ E below the data"
    return f"{allowed}; parameters at a bound: {'; '.join(hit) or 'none'}"


def _intervals(study: Study) -> str | None:
    intervals = [each for finding in study.findings for each in finding.intervals.values()]
    intervals += [each for law in study.surfaces.values() for each in law.intervals.values()]
    methods = dict.fromkeys(f"{100 * each.level:g} % by {each.method}" for each in intervals)
    resampling = {finding.resampled.get("method", "") for finding in study.findings} - {""}
    more = f"; in addition: {'; '.join(sorted(resampling))}" if resampling else ""
    return "; ".join(methods) + more if methods else None


def _held_out(study: Study) -> str | None:
    """Each law's error at the largest size, for the first metric in its first variable."""
    tested: list[LawResult] = [finding for finding in study.findings if finding.held_out]
    first = [f for f in tested if (f.metric, f.variable) == (tested[0].metric, tested[0].variable)]
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
        return f"{len(labels)} ({shown}); no size was run with two seeds"
    return f"{len(labels)} ({shown}); sd of log L_mean between seeds {fixed(noise.sd, 5)}"


def _code(rows: pd.DataFrame, provenance: Mapping[str, str]) -> str | None:
    commits = sorted(rows.commit.dropna().unique())
    return ", ".join(commits) or provenance.get("code") or None
