"""A study as JSON values: the content of laws.json, for scripts, MLflow and comparisons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from analysis.caveats import caveats
from analysis.compute_optimal.surface import SurfaceLaw
from analysis.law_result import METRICS, VARIABLES, LawResult
from analysis.selection.rates import rate_sweeps
from analysis.selection.select import exponent_at_bound
from analysis.study import Study
from analysis.summary import main_result
from analysis.uncertainty.intervals import Interval

FORMAT = 4
# Columns of the run table that describe how a trial was trained.
_SETTINGS = (
    "family", "depth", "steps", "batch_size", "learning_rate", "schedule", "precision", "tokenizer",
    "data", "seed",
)  # fmt: skip
_LISTED = 8


def laws_of_all(studies: Mapping[str, Study], trials: Sequence[str] = ()) -> dict[str, Any]:
    """The content of laws.json: the laws of a single study, or those of each study in "groups".

    `trials`: names of all planned trials. docs/laws_json.md describes every field.
    """
    if list(studies) == [""]:
        return laws_of(studies[""], trials)
    groups = {label: laws_of(study) for label, study in studies.items()}
    return {"format": FORMAT, "objective": next(iter(groups.values()))["objective"],
            "groups": groups}  # fmt: skip


def laws_of(study: Study, trials: Sequence[str] = ()) -> dict[str, Any]:
    """Every law with its certificate, intervals and points, the warnings, and what was left out."""
    sizes, main = study.table.finals[study.size].dropna(), main_result(study, trials)
    return plain({
        "format": FORMAT,
        "size": study.size,
        "runs": len(sizes),
        "sizes": int(sizes.nunique()),
        "decades": float(np.log10(sizes.max() / sizes.min())) if len(sizes) else 0.0,
        "objective": study.objective,
        "main": {"sentence": main.sentence, "undetermined": list(main.undetermined)},
        "warnings": [asdict(caveat) for caveat in caveats(study, trials)],
        "laws": [_law(study, finding) for finding in study.findings],
        "surfaces": [_surface(study, surface) for surface in study.surfaces.values()],
        "forms": [_surface(study, form) for form in study.forms],
        "mixed_data": study.mixed_data,
        "allocation": _allocation(study),
        "choices": [
            {"metric": metric, "variable": variable, "verdict": study.verdict(metric, variable)}
            for metric, variable in study.choices
        ],
        "rates": [
            {"size": each.size, "width": each.width, "losses": list(each.losses.items()),
             "best": each.best, "constant": each.constant, "at_edge": each.at_edge}
            for each in rate_sweeps(study.table.finals, study.size)
        ],
        "predictions": [asdict(prediction) for prediction in study.predictions],
        "unpredicted": list(study.unpredicted),
        "noise": {metric: asdict(noise) for metric, noise in study.noise.items()},
        "refused": list(study.refused),
        "dropped": list(study.table.dropped),
        "notes": list(study.table.notes),
        "table": {"source": study.table.source, "fingerprint": study.table.fingerprint},
        "trial_settings": _trial_settings(study.table.finals),
    })  # fmt: skip


def _trial_settings(finals: pd.DataFrame) -> dict[str, str]:
    """The values of each setting over the trials, as text: at most 8, else the range."""
    settings = {}
    for name in (name for name in _SETTINGS if name in finals):
        values = sorted(finals[name].dropna().unique())
        texts = [each if isinstance(each, str) else f"{each:.6g}" for each in values]
        if len(texts) > _LISTED:
            texts = [f"{texts[0]} to {texts[-1]} ({len(texts)} values)"]
        settings[name] = ", ".join(texts)
    return settings


def _law(study: Study, finding: LawResult) -> dict[str, Any]:
    held_out = finding.held_out
    mixed = study.is_mixed(finding)
    why = f"its runs have different D: {study.mixed_data[finding.metric]}" if mixed else None
    return {
        "metric": finding.metric,
        "variable": finding.variable,
        "symbol": METRICS[finding.metric][0],
        "variable_symbol": VARIABLES[finding.variable][0],
        "label": finding.label,
        "fit": finding.fit.as_dict(),
        "no_law": finding.no_law or why,
        "exponent_at_bound": exponent_at_bound(finding.fit),
        "intervals": finding.intervals,
        "resampled": finding.resampled,
        "held_out": {**asdict(held_out), "relative_error": held_out.relative_error}
        if held_out
        else None,
        "x": finding.x,
        "y": finding.y,
        "trials": finding.trials,
    }


def _surface(study: Study, surface: SurfaceLaw) -> dict[str, Any]:
    held_out, (N, D, *_) = surface.held_out, surface.fit.data.x
    return {
        "metric": surface.metric,
        "symbol": METRICS[surface.metric][0],
        "size": surface.size,
        "label": study.surface_label(surface.metric),
        "fit": surface.fit.as_dict(),
        "intervals": surface.intervals,
        "no_law": surface.no_law or None,
        "flags": surface.flags,
        "aicc": surface.aicc,
        "held_out": {**asdict(held_out), "relative_error": held_out.relative_error}
        if held_out
        else None,
        "N": N.tolist(),
        "D": D.tolist(),
        "y": surface.fit.data.y.tolist(),
        "trials": surface.trials,
    }


def _allocation(study: Study) -> dict[str, Any] | None:
    """The three approaches to the best N and D for a budget, for L_mean; None if there are none."""
    found = study.allocation
    if found is None:
        return None
    return {
        "cost": found.cost,
        "budget": found.budget,
        "isoflop_curve": found.isoflops.curve,
        "isoflops": [
            {
                "budget": each.budget,
                "N": each.N,
                "N_interval": each.N_interval,
                "D": each.D,
                "L": each.L,
                "L_interval": each.L_interval,
                "points": len(each.sizes),
                "left_out": each.left_out,
            }
            for each in found.isoflops.minima
        ],
        "isoflops_refused": [str(error) for error in found.isoflops.refused],
        "isoflops_unused": found.isoflops.unused,
        "approaches": found.table().to_dict("records"),
        "disagreement": found.disagreement,
    }


def plain(value: Any) -> Any:
    """`value` as JSON values: NaN and infinity become None, an interval becomes a dictionary."""
    if isinstance(value, Interval):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
