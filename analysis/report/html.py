"""One self-contained HTML page of a study; all its numbers come from the given objects."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis import format as formats
from analysis.comparison import var_paper as paper
from analysis.fitting.points import FitError
from analysis.law_result import METRICS, VARIABLES, LawResult
from analysis.plots.all_figures import CAPTIONS
from analysis.plots.style import STYLE
from analysis.report.checklist import checklist
from analysis.report.embed import inline_image
from analysis.report.latex import law_table
from analysis.selection.influence import influence
from analysis.selection.rates import rate_sweeps
from analysis.study import Study
from analysis.summary import main_result, unmeasured, verdicts
from analysis.table.runs import run_names

# The figure of the first screen: the first of these that the study has.
_MAIN_FIGURES = ("main_law", "size_and_data", "allocation", "laws_in_parameters", "laws_in_compute")
_SHOWN_ROWS = 1000  # of a table of runs; all runs are in laws.json
_SCREEN_DPI = 96  # CSS pixels of an inch
# Each section: its anchor, its title, and its figures.
SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("verdict", "Each metric", ()),
    ("surface", "Size and data", ("size_and_data",)),
    ("the-laws", "Laws", ("laws_in_parameters", "above_the_floor", "laws_in_compute")),
    ("choice", "Choice of law", ("residuals", "influence")),
    ("sensitivity", "Counting and objective", ("conventions", "objectives")),
    ("by-scale", "Each scale", ("scales",)),
    ("noise", "Seed noise", ()),
    ("compute", "Compute", ("isoflop", "allocation")),
    ("extrapolation", "Hold-out", ("holdout",)),
    ("forecasts", "Forecasts", ("forecasts",)),
    ("paper", "The VAR paper", ()),
    ("checklist", "Checklist", ()),
    ("fits", "Certificates", ()),
    ("points", "Points", ()),
    ("runs", "Runs", ("curves", "rates")),
    ("samples", "Samples", ()),
    ("fidelity", "Fidelity", ()),
    ("speed", "Speed", ()),
    ("tokenizer", "Tokenizer", ()),
    ("more", "More figures", ()),
    ("provenance", "Provenance", ()),
)


@dataclass(frozen=True)
class ModelImages:
    """Samples and edits of one model."""

    name: str
    pictures: tuple[tuple[str, Path], ...]  # caption and PNG
    unshown: str = ""  # a sentence on the images that are not shown


@dataclass(frozen=True)
class Facts:
    """The content of the page other than the laws, computed by the caller."""

    title: str
    question: str
    settings: dict[str, str]
    provenance: dict[str, str]
    tokenizers: list[dict[str, str]] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)  # caption: PNG
    trials: tuple[str, ...] = ()  # all planned trials; the page lists those without a row
    failures: tuple[str, ...] = ()  # one sentence for each failure
    made: tuple[ModelImages, ...] = ()
    unshown: str = ""  # a sentence on the models whose images are not shown
    fidelity: list[dict[str, str]] = field(default_factory=list)
    speed: list[dict[str, str]] = field(default_factory=list)


def write_report(path: Path, study: Study, figures: Mapping[str, Path], facts: Facts) -> None:
    """Write the page to `path` with figures (PNGs by name) and images embedded, and laws.tex to the
    same folder. A section without content is left out.
    """
    templates = environment()
    drawn = {name: figure_of(name, png) for name, png in figures.items()}
    main = main_figure(figures)
    placed = {name for *_, names in SECTIONS for name in names} | {main, "main_law"}
    context: dict[str, Any] = {
        "study": study, "facts": facts, "METRICS": METRICS, "VARIABLES": VARIABLES,
        "findings": _with_seeds(study),
        "traces": _traces(study), "runs": _runs(study), "run_ids": _run_ids(study),
        "main": main_result(study, facts.trials), "main_figure": drawn[main] if main else None,
        "verdicts": verdicts(study), "failures": facts.failures,
        "unmeasured": unmeasured(study), "checklist": checklist(study, facts.provenance),
        "paper_rows": paper.paper_table(study.findings), "paper_note": paper.NOTE,
        "extent": _extent(study), "cuts": _cuts(study),
        "rates": rate_sweeps(study.table.finals, study.size),
        "pictures": [(c, inline_image(p)) for c, p in facts.pictures.items()],
        "made": [shown_pictures(model) for model in facts.made],
    }  # fmt: skip
    sections = []
    for anchor, title, names in _ordered(study):
        if anchor == "more":
            names = tuple(name for name in drawn if name not in placed)
        present = [drawn[name] for name in names if name in drawn and name != main]
        template = templates.get_template(f"{anchor}.html.j2")
        body = template.render(**context, figures=present).strip()
        if body:
            sections.append((anchor, title, Markup(body)))
    page = templates.get_template("report.html.j2").render(**context, sections=sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    path.with_name("laws.tex").write_text(law_table(study), encoding="utf-8")


def main_figure(figures: Mapping[str, Path]) -> str | None:
    """The name of the figure that belongs on the first screen; None if there is none."""
    return next((name for name in _MAIN_FIGURES if name in figures), None)


def _ordered(study: Study) -> list[tuple[str, str, tuple[str, ...]]]:
    """The sections; laws in N alone come first unless runs of one size have different D."""
    order = {anchor: place for place, (anchor, *_) in enumerate(SECTIONS)}
    if not study.mixed_data:
        order["surface"], order["the-laws"] = order["the-laws"], order["surface"]
    return sorted(SECTIONS, key=lambda section: order[section[0]])


def environment() -> Environment:
    """The templates' environment: it escapes all values, and an undefined name is an error."""
    templates = Environment(
        loader=PackageLoader("analysis.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {**formats.FORMS, "span": formats.span}
    return templates


def law_anchor(finding: LawResult) -> str:
    return f"law-{finding.metric}-{finding.variable}-{finding.fit.law.name}"


def _with_seeds(study: Study) -> list[dict[str, Any]]:
    """Each law with its anchor and the number of seeds of its points."""
    rows, shown = study.table.rows, []
    names = run_names(rows)
    for finding in study.findings:
        named = set(finding.trials)
        count = int(rows[rows.trial.isin(named) | names.isin(named)].seed.nunique())
        text = "seed not known" if not count else f"{count} seed{'s' * (count > 1)}"
        shown.append(
            {"law": finding, "fit": finding.fit, "anchor": law_anchor(finding), "seeds": text}
        )
    return shown


def _extent(study: Study) -> str:
    """The number and range of the sizes of the runs; "" if no size is known."""
    sizes = study.table.finals[study.size].dropna()
    if sizes.empty:
        return ""
    decades = formats.fixed(float(np.log10(sizes.max() / sizes.min())), 1)
    count = sizes.nunique()
    return f"{count} size{'s' * (count != 1)} over {decades} decades of {VARIABLES[study.size][0]}"


def _traces(study: Study) -> list[dict[str, Any]]:
    """For each metric and variable, the points with each law's prediction and residual.

    Of many points, those with the largest residuals of the first law; `of` is the number of all.
    """
    pairs: dict[tuple[str, str], list[LawResult]] = {}
    for finding in study.findings:
        pairs.setdefault((finding.metric, finding.variable), []).append(finding)
    traces = []
    for (metric, variable), laws in pairs.items():
        columns = []
        largest = np.argsort(-np.abs(laws[0].fit.residuals), kind="stable")[:_SHOWN_ROWS]
        shown = np.sort(largest).tolist()
        for law in laws:
            fit, influences = law.fit, _influences(study, law)
            predicted, residuals = fit.predict(fit.data.x), fit.residuals
            cells = {
                i: (float(predicted[i]), float(residuals[i]), influences.get(i, (None, None)))
                for i in shown
            }
            columns.append((fit.law.name, cells))
        x, y = laws[0].x, laws[0].y
        rows = [(laws[0].trials[i], x[i], y[i], [cells[i] for _, cells in columns]) for i in shown]
        traces.append({"metric": metric, "variable": variable, "label": laws[0].label,
                      "laws": [name for name, _ in columns], "rows": rows,
                      "of": laws[0].fit.points})  # fmt: skip
    return traces


def _influences(study: Study, finding: LawResult) -> dict[int, tuple[float, float]]:
    """By point: the change of α without it, and its Cook's distance. Empty if not computable."""
    choice = study.choices.get((finding.metric, finding.variable))
    candidates = choice.candidates if choice else ()
    candidate = next((each for each in candidates if each.fit is finding.fit), None)
    try:
        influences = candidate.influence if candidate is not None else influence(finding.fit)
    except FitError:
        return {}
    return {each.point: (each.alpha_change, each.distance) for each in influences}


def _cuts(study: Study) -> list[dict[str, Any]]:
    """For each law and cut: the mean |error| of the runs above the cut, and that of the largest."""
    rows = []
    for law, predictions in study.rolled.items():
        for cut in dict.fromkeys(each.cut for each in predictions):
            above = [each for each in predictions if each.cut == cut]
            largest = max(above, key=lambda each: each.x)
            errors = [abs(each.relative_error) for each in above]
            rows.append({
                "law": law, "cut": cut, "sizes": above[0].sizes, "runs": above[0].runs,
                "above": len(above), "mean": sum(errors) / len(errors), "largest": largest,
            })  # fmt: skip
    return sorted(rows, key=lambda row: (row["cut"], row["law"] != "pure"))


# Column of the run table: its heading and its number format ("" for text).
_RUN_COLUMNS: dict[str, tuple[str, str]] = {
    "family": ("family", ""), "depth": ("depth", "size"), "width": ("width", "size"),
    "seed": ("seed", "size"), "params_blocks": ("N in blocks", "size"),
    "params_total": ("N total", "size"), "tokens_seen": ("D, tokens seen", "size"),
    "epochs": ("epochs", "significant"), "train_flops": ("C, FLOPs", "significant"),
    "learning_rate": ("peak rate", "significant"), "val_loss": ("L_mean", "fixed"),
    "val_loss_stderr": ("± s.e.", "fixed"), "val_loss_last": ("L_last", "fixed"),
    "val_error": ("Err_mean", "fixed"), "val_error_last": ("Err_last", "fixed"),
    "fid": ("FID", "significant"), "seconds": ("seconds", "significant"), "status": ("status", ""),
}  # fmt: skip


def _runs(study: Study) -> dict[str, Any]:
    """The final rows of the first runs, without columns that are empty; `of` counts all runs.

    Among runs of one name, the first has the anchor that links point to.
    """
    finals, anchors = study.table.finals, _run_ids(study)
    names = [name for name in _RUN_COLUMNS if finals[name].notna().any()]
    rows = [
        (
            anchors.pop(str(row["trial"]), None),
            str(row["trial"]),
            [_cell(row[name], _RUN_COLUMNS[name][1]) for name in names],
        )
        for row in finals.head(_SHOWN_ROWS).to_dict("records")
    ]
    header = [(_RUN_COLUMNS[n][0], not _RUN_COLUMNS[n][1]) for n in names]
    return {"header": header, "rows": rows, "of": len(finals)}


def _cell(value: Any, form: str) -> str:
    if pd.isna(value):
        return formats.NONE
    return formats.FORMS[form](float(value)) if form else str(value)


def _run_ids(study: Study) -> dict[str, str]:
    """An anchor for each shown trial's name; numbered, because a name may have any characters."""
    names = dict.fromkeys(study.table.finals.head(_SHOWN_ROWS).trial.astype(str))
    return {name: f"run-{number}" for number, name in enumerate(names, start=1)}


def figure_of(name: str, png: Path, prefix: str = "") -> dict[str, Any]:
    """One of our figures, embedded, in the size of its print, with its anchor and caption.

    `prefix` distinguishes figures of one name on a page.
    """
    image = inline_image(png)
    return {
        "anchor": re.sub(r"[^\w-]+", "-", prefix + name),
        "uri": image.uri,
        "width": round(image.width * _SCREEN_DPI / STYLE["savefig.dpi"]),
        "height": round(image.height * _SCREEN_DPI / STYLE["savefig.dpi"]),
        "caption": CAPTIONS.get(name, name.replace("_", " ")),
    }


def shown_pictures(model: ModelImages) -> dict[str, Any]:
    """The images of a model, for the template."""
    pictures = [(caption, inline_image(png)) for caption, png in model.pictures]
    return {"name": model.name, "pictures": pictures, "unshown": model.unshown}
