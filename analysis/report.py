"""One self-contained HTML page from a study: every number on it comes from the objects given."""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from analysis.study import METRICS, VARIABLES, Study

CAPTIONS = {
    "laws_in_parameters": (
        "Held-out loss and token error at the end of training. Above: against the weights of the "
        "block matrices; below: against all parameters. Dashed: a pure power law; solid: with a "
        "fitted floor, where the fit wants one."
    ),
    "above_the_floor": (
        "What lies above the fitted floor E, against the same two counts: by the law, a straight "
        "line."
    ),
    "laws_in_compute": (
        "Thin lines: each run's held-out score against the training FLOPs spent so far, dark for "
        "small and bright for large models. Points: the frontier, over the ends of runs, where the "
        "learning rate has decayed. Where a model was still improving when it stopped, it is an "
        "upper bound."
    ),
    "curves": "Held-out loss and error of each run against the training tokens it has seen.",
    "rates": "Final held-out loss against the peak learning rate, a line for each size.",
    "scales": "Final held-out loss of each scale, coarse (1) to fine, against parameters.",
}


@dataclass(frozen=True)
class Facts:
    """What the page says besides the laws; nothing in it is computed here."""

    title: str
    question: str
    settings: dict[str, str]
    provenance: dict[str, str]
    tokenizers: list[dict[str, str]] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)  # caption: PNG


def write_report(path: Path, study: Study, figures: dict[str, Path], facts: Facts) -> None:
    """Write the page to `path`; figures and pictures are put inside it."""
    environment = Environment(
        loader=PackageLoader("analysis"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        facts=facts,
        laws=[_law_row(finding) for finding in study.findings],
        runs=_runs(study),
        figures=[(_inline(figures[name]), CAPTIONS[name], name) for name in figures],
        pictures=[(_data_uri(png), caption) for caption, png in facts.pictures.items()],
        dropped=study.table.dropped,
        refused=study.refused,
        warnings=_warnings(study),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def _law_row(finding: Any) -> dict[str, str]:
    fit, boot, floor, held = (
        finding.fit,
        finding.bootstrap,
        finding.floor_interval,
        finding.held_out,
    )
    certificate = fit.certificate
    return {
        "law": f"{METRICS[finding.metric][0]}({VARIABLES[finding.variable][0]})",
        "form": "reducible, " + fit.law.formula if fit.law.floor else "raw, " + fit.law.formula,
        "alpha": f"{fit.alpha:.4f}",
        "alpha_interval": f"[{boot.alpha.low:.4f}, {boot.alpha.high:.4f}]" if boot else "–",
        "beta": f"{fit.beta:.3g}" if fit.beta else "–",
        "floor": f"{fit.E:.4f}" if fit.law.floor else "–",
        "floor_interval": f"[{floor.low:.3f}, {floor.high:.3f}]" if floor else "–",
        "r": f"{fit.r:.5f}",
        "r2": f"{fit.r2:.5f}",
        "rms": f"{fit.rms_relative_error:.3%}",
        "held_out": f"{held.relative_error:+.2%}" if held else "–",
        "points": f"{fit.points} points, {fit.sizes} sizes, {fit.decades:.1f} decades",
        "certificate": (
            f"{'converged' if certificate.converged else 'NOT CONVERGED'}; "
            f"{certificate.agreed:.0%} of {certificate.starts} starts agreed; "
            f"gradient {certificate.gradient:.0e}"
            + ("; floor at its bound" if certificate.at_bound else "")
            + (f"; {boot.resamples} resamples, {boot.rejected} drawn again" if boot else "")
        ),
    }


def _warnings(study: Study) -> list[str]:
    """What a reader must know before believing the page."""
    finals, found = study.table.finals, []
    if finals.empty:
        return ["No trial has finished, so there is no law yet."]
    repeated = finals[finals.get("epochs", 0) > 1.0 + 1e-9]
    if len(repeated):
        found.append(
            f"{len(repeated)} runs saw their images up to {repeated.epochs.max():.1f} times: "
            "a floor may be over-fitting."
        )
    if finals.seed.nunique() == 1:
        found.append("One seed a size: the noise between seeds is not in any interval.")
    if finals.params_blocks.nunique() < 5:
        found.append(
            f"Only {finals.params_blocks.nunique()} sizes: a straight line is no evidence."
        )
    if finals.groupby("params_blocks").learning_rate.nunique().max() > 1:
        found.append("Sizes have several learning rates: the laws pool them, good ones and bad.")
    lost = study.table.rows[~study.table.rows.status.isin(["done", "imported"])].trial.unique()
    if len(lost):
        found.append(f"Not finished, so not in any law: {', '.join(sorted(lost))}.")
    return found


def _runs(study: Study) -> list[dict[str, str]]:
    return [_run_row(row) for row in study.table.finals.to_dict("records")]


def _run_row(row: dict[Any, Any]) -> dict[str, str]:
    return {
        "trial": str(row["trial"]),
        "depth": str(row["depth"]),
        "width": str(row["width"]),
        "params": f"{row['params_blocks']:,}",
        "total": f"{row['params_total']:,}",
        "tokens": _shown(row["tokens_seen"], ",.0f"),
        "flops": _shown(row["train_flops"], ".3e"),
        "loss": f"{row['val_loss']:.4f}",
        "stderr": _shown(row.get("val_loss_stderr"), ".4f"),
        "loss_last": f"{row['val_loss_last']:.4f}",
        "error": f"{row['val_error']:.4f}",
        "error_last": f"{row['val_error_last']:.4f}",
        "seconds": _shown(row["seconds"], ",.0f"),
    }


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None or value != value else f"{value:{form}}"


def _inline(svg: Path) -> Markup:
    """Our own figure, from its <svg> on, so that the page needs no other file."""
    text = svg.read_text()
    return Markup(text[text.index("<svg") :])


def _data_uri(png: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()
