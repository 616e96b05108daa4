"""One self-contained HTML page from a study: every number on it comes from the objects given."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from analysis.comparison import var_paper as paper
from analysis.fitting.points import FitError
from analysis.plots.all_figures import CAPTIONS
from analysis.report import format as shown
from analysis.report.checklist import checklist
from analysis.report.embed import inlined
from analysis.report.latex import law_table
from analysis.report.text import unmeasured, verdicts, warnings
from analysis.selection.influence import influence
from analysis.selection.rates import rate_sweeps
from analysis.study import METRICS, VARIABLES, LawResult, Study

# Of each section: its anchor, its title, and the figures that stand in it.
SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("verdict", "In short", ()),
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
    """What was made with one model, to be shown."""

    name: str
    pictures: tuple[tuple[str, Path], ...]  # caption and PNG
    unshown: str = ""  # what else there is


@dataclass(frozen=True)
class Facts:
    """What the page says besides the laws; nothing in it is computed here."""

    title: str
    question: str
    settings: dict[str, str]
    provenance: dict[str, str]
    tokenizers: list[dict[str, str]] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)  # caption: PNG
    trials: tuple[str, ...] = ()  # all that were planned; those without a row are named
    failures: tuple[str, ...] = ()  # what has plainly failed, a sentence each
    made: tuple[ModelImages, ...] = ()
    unshown: str = ""  # other models with which something was made
    fidelity: list[dict[str, str]] = field(default_factory=list)
    speed: list[dict[str, str]] = field(default_factory=list)


def write_report(path: Path, study: Study, figures: Mapping[str, Path], facts: Facts) -> None:
    """Write the page to `path`, figures (SVGs by name) and pictures inside it, and laws.tex beside.

    A section of which the study knows nothing is not there.
    """
    templates = environment()
    drawn = {name: figure_of(name, svg) for name, svg in figures.items()}
    placed = {name for *_, names in SECTIONS for name in names}
    context: dict[str, Any] = {
        "study": study, "facts": facts, "METRICS": METRICS, "VARIABLES": VARIABLES,
        "findings": [_shown(study, finding) for finding in study.findings],
        "traces": _traces(study), "runs": _runs(study), "run_ids": _run_ids(study),
        "verdicts": verdicts(study), "warnings": (*facts.failures, *warnings(study, facts.trials)),
        "unmeasured": unmeasured(study), "checklist": checklist(study, facts.provenance),
        "beside": paper.paper_table(study.findings), "paper_note": paper.NOTE,
        "cuts": _cuts(study), "rates": rate_sweeps(study.table.finals, study.size),
        "pictures": [(c, inlined(p)) for c, p in facts.pictures.items()],
        "made": [shown_pictures(one) for one in facts.made],
    }  # fmt: skip
    sections = []
    for anchor, title, names in SECTIONS:
        own = names if anchor != "more" else tuple(name for name in drawn if name not in placed)
        here = [drawn[name] for name in own if name in drawn]
        body = templates.get_template(f"{anchor}.html.j2").render(**context, figures=here).strip()
        if body:
            sections.append((anchor, title, Markup(body)))
    page = templates.get_template("report.html.j2").render(**context, sections=sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    path.with_name("laws.tex").write_text(law_table(study), encoding="utf-8")


def environment() -> Environment:
    """Templates that escape everything and fail on a name that is not given."""
    found = Environment(
        loader=PackageLoader("analysis.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {**shown.FORMS, "span": shown.span}
    return found


def law_anchor(finding: LawResult) -> str:
    return f"law-{finding.metric}-{finding.variable}-{finding.fit.law.name}"


def _shown(study: Study, finding: LawResult) -> dict[str, Any]:
    """A law beside what is counted, not fitted: the seeds that its points come from."""
    rows = study.table.rows
    seeds = rows[rows.trial.isin(set(finding.trials))].seed
    counted = int(seeds.nunique())
    said = "seed not known" if not counted else f"{counted} seed{'s' * (counted > 1)}"
    return {"law": finding, "fit": finding.fit, "anchor": law_anchor(finding), "seeds": said}


def _traces(study: Study) -> list[dict[str, Any]]:
    """The points of all laws of one metric in one variable, with what each law makes of them."""
    pairs: dict[tuple[str, str], list[LawResult]] = {}
    for finding in study.findings:
        pairs.setdefault((finding.metric, finding.variable), []).append(finding)
    found = []
    for (metric, variable), laws in pairs.items():
        columns = []
        for law in laws:
            fit, moves = law.fit, _influences(study, law)
            predicted, left = fit.predict(fit.given.x).tolist(), fit.residuals.tolist()
            cells = [(predicted[i], left[i], moves.get(i, (None, None))) for i in range(fit.points)]
            columns.append((fit.law.name, cells))
        rows = [
            (trial, laws[0].x[i], laws[0].y[i], [cells[i] for _, cells in columns])
            for i, trial in enumerate(laws[0].trials)
        ]
        found.append({"metric": metric, "variable": variable, "label": laws[0].label,
                      "laws": [name for name, _ in columns], "rows": rows})  # fmt: skip
    return found


def _influences(study: Study, finding: LawResult) -> dict[int, tuple[float, float]]:
    """By point: how far α moves without it, and its distance; those that can be spared."""
    choice = study.choices.get((finding.metric, finding.variable))
    known = choice.get(finding.fit.law.name) if choice else None
    try:
        found = known.influence if known is not None else influence(finding.fit)
    except FitError:
        return {}
    return {each.point: (each.alpha_change, each.distance) for each in found}


def _cuts(study: Study) -> list[dict[str, Any]]:
    """Of each law and cut: mean |error| over the runs above it, and the error at the largest."""
    found = []
    for law, held in study.rolled.items():
        for cut in dict.fromkeys(each.cut for each in held):
            above = [each for each in held if each.cut == cut]
            largest = max(above, key=lambda each: each.x)
            errors = [abs(each.relative_error) for each in above]
            found.append({
                "law": law, "cut": cut, "sizes": above[0].sizes, "runs": above[0].runs,
                "above": len(above), "mean": sum(errors) / len(errors), "largest": largest,
            })  # fmt: skip
    return sorted(found, key=lambda row: (row["cut"], row["law"] != "pure"))


# Column of the table: heading, and how it is shown.
_RUN_COLUMNS: dict[str, tuple[str, str]] = {
    "family": ("kind", ""), "depth": ("depth", "size"), "width": ("width", "size"),
    "seed": ("seed", "size"), "params_blocks": ("N in blocks", "size"),
    "params_total": ("N total", "size"), "tokens_seen": ("D, tokens seen", "size"),
    "epochs": ("passes", "significant"), "train_flops": ("C, FLOPs", "significant"),
    "learning_rate": ("peak rate", "significant"), "val_loss": ("L_mean", "fixed"),
    "val_loss_stderr": ("± s.e.", "fixed"), "val_loss_last": ("L_last", "fixed"),
    "val_error": ("Err_mean", "fixed"), "val_error_last": ("Err_last", "fixed"),
    "fid": ("FID", "significant"), "seconds": ("seconds", "significant"), "status": ("status", ""),
}  # fmt: skip


def _runs(study: Study) -> dict[str, Any]:
    """The ends of runs, under the columns of which anything is known.

    Of runs of one name, the first is where links lead.
    """
    finals, anchors = study.table.finals, _run_ids(study)
    names = [name for name in _RUN_COLUMNS if finals[name].notna().any()]
    rows = [
        (
            anchors.pop(str(row["trial"]), None),
            str(row["trial"]),
            [_cell(row[name], _RUN_COLUMNS[name][1]) for name in names],
        )
        for row in finals.to_dict("records")
    ]
    return {"header": [(_RUN_COLUMNS[n][0], not _RUN_COLUMNS[n][1]) for n in names], "rows": rows}


def _cell(value: Any, form: str) -> str:
    if pd.isna(value):
        return shown.NONE
    return shown.FORMS[form](float(value)) if form else str(value)


def _run_ids(study: Study) -> dict[str, str]:
    """An anchor for each trial's name, of whatever characters that is made."""
    names = dict.fromkeys(study.table.finals.trial.astype(str))
    return {name: f"run-{place}" for place, name in enumerate(names, start=1)}


def figure_of(name: str, svg: Path, room: str = "") -> dict[str, Any]:
    """Our own figure, from its <svg> on; its ids are made its own, for many share the page;
    `room` tells figures of one name apart.
    """
    text, anchor = svg.read_text(encoding="utf-8"), re.sub(r"[^\w-]+", "-", room + name)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{anchor}-", text[text.index("<svg") :])
    caption = CAPTIONS.get(name, name.replace("_", " "))
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
    return {"anchor": anchor, "svg": Markup(text), "caption": caption}


def shown_pictures(made: ModelImages) -> dict[str, Any]:
    pictures = [(caption, inlined(png)) for caption, png in made.pictures]
    return {"name": made.name, "pictures": pictures, "unshown": made.unshown}
