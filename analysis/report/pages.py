"""The pages of a report: one page if all runs are of one group, else one each and an overview."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from analysis.law_result import METRICS, VARIABLES
from analysis.plots.all_figures import draw_all
from analysis.report.embed import inline_image
from analysis.report.families import FamiliesSection, families_section
from analysis.report.html import (
    Facts,
    environment,
    figure_of,
    main_figure,
    shown_pictures,
    write_report,
)
from analysis.study import Study
from analysis.summary import main_result, verdicts

# Sections of the overview besides the laws: anchor and title, as on the page of one group.
_SHARED = (
    ("samples", "Samples"),
    ("fidelity", "Fidelity"),
    ("speed", "Speed"),
    ("tokenizer", "Tokenizers"),
)
_FIGURE = "laws_in_parameters"


@dataclass(frozen=True)
class Scored:
    """The scored samples of a sweep."""

    images: pd.DataFrame  # rows of images.parquet
    unscored: tuple[str, ...] = ()  # sets that the sweep requests and that are not scored yet
    side_by_side: Mapping[str, Path] = field(default_factory=dict)  # caption: PNG


def write_pages(
    folder: Path,
    studies: Mapping[str, Study],
    facts: Facts,
    formats: Sequence[str] = (),
    scored: Scored | None = None,
    processes: int = 1,
) -> Path:
    """Draw every figure as PNG and in `formats`, and write every page; returns the start page.

    `processes`: see analysis.parallel.
    """
    index = folder / "index.html"
    if list(studies) == [""]:
        write_report(index, studies[""], draw_all(studies[""], folder, formats, processes), facts)
        return index
    groups = []
    for label, study in studies.items():
        subfolder = folder / slug(label)
        figures = draw_all(study, subfolder, formats, processes)
        write_report(subfolder / "index.html", study, figures, _facts_of_group(facts, label, study))
        png, main = figures.get(_FIGURE), main_figure(figures)
        groups.append({
            "label": label,
            "page": f"{subfolder.name}/index.html",
            "runs": len(study.table.finals),
            "verdicts": verdicts(study),
            "main": main_result(study),
            "main_figure": main and figure_of(main, figures[main], f"{subfolder.name}-"),
            "refused": study.refused,
            "figure": None if png is None else figure_of(_FIGURE, png, f"{subfolder.name}-"),
        })  # fmt: skip
    measured = {name for study in studies.values() for name in study.table.rows.trial}
    context = {
        "facts": facts,
        "made": [shown_pictures(model) for model in facts.made],
        "pictures": [(caption, inline_image(png)) for caption, png in facts.pictures.items()],
    }
    templates = environment()
    compared, comparison = (
        (None, Markup()) if scored is None else _compared(scored, folder, formats)
    )
    sections = [("families", "Families compared", comparison)] if comparison else []
    for anchor, title in _SHARED:
        body = templates.get_template(f"{anchor}.html.j2").render(**context).strip()
        if body:
            sections.append((anchor, title, Markup(body)))
    page = templates.get_template("overview.html.j2").render(
        **context,
        groups=groups,
        compared=compared,
        sections=sections,
        absent=[name for name in facts.trials if name not in measured],
        METRICS=METRICS,
        VARIABLES=VARIABLES,
    )
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text(page, encoding="utf-8")
    return index


def _facts_of_group(facts: Facts, label: str, study: Study) -> Facts:
    trials = set(study.table.rows.trial)
    return Facts(
        title=f"{facts.title}: {label}",
        question=facts.question,
        settings=facts.settings,
        provenance=facts.provenance,
        trials=tuple(name for name in facts.trials if name in trials),
    )


def _compared(
    scored: Scored, folder: Path, formats: Sequence[str]
) -> tuple[FamiliesSection | None, Markup]:
    """The comparison of families and its section, or the reason why there is none: an error here
    must not prevent the other pages.
    """
    try:
        section = families_section(scored.images, folder, formats, scored.unscored)
    except ValueError as error:
        return None, Markup("<p class='note'>Not compared: {}</p>").format(error)
    if section is None:
        return None, Markup()
    image_rows = [(caption, inline_image(png)) for caption, png in scored.side_by_side.items()]
    template = environment().get_template("families.html.j2")
    return section, Markup(template.render(section=section, side_by_side=image_rows).strip())


def slug(label: str) -> str:
    """A group's label as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", label).strip("-.") or "group"
