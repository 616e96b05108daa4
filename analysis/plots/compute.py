"""Figures of training: runs and their frontier in compute, curves in tokens, learning rates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from analysis.compute_optimal.frontier import Frontier
from analysis.compute_optimal.frontier_law import SurfacePath, frontier_interval
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import PURE, Law
from analysis.law_result import METRICS
from analysis.plots.axes import logarithmic
from analysis.plots.law_panel import draw_law, fit_label, law_handles
from analysis.plots.laws import metric_label
from analysis.plots.style import (
    BLUE,
    GREY,
    SINGLE,
    SeriesStyle,
    hide_empty_panels,
    legend_above,
    legend_inside,
    marker_size,
    new_figure,
    panel_grid,
    size_legend,
    size_styles,
    styled,
)
from analysis.selection.select import has_irreducible_loss
from analysis.study import Study
from analysis.uncertainty.intervals import Interval

COMPUTE, TOKENS = "$C$, training compute (FLOP)", "$D$, training tokens seen"
_RUN = ("sweep", "seed")  # columns that distinguish runs of one size and name


@styled
def laws_in_compute(study: Study) -> Figure | None:
    """Each run's held-out score against its training FLOPs, and the law along the frontier."""
    metrics = [m for m in METRICS if study.get(m, "train_flops", "pure") and m in study.frontiers]
    if not metrics:
        return None
    figure, panels = panel_grid(len(metrics), 2.1, 0.6 if len(metrics) > 1 else 1.1)
    styles = _styles_of_sizes(study.table.rows, study.size)
    laws: set[str] = set()
    for panel, metric in zip(panels.flat, metrics, strict=False):
        draw_runs(panel, study.table.rows, "train_flops", metric, study.size, styles)
        findings = [study.get(metric, "train_flops", law) for law in ("pure", "floor")]
        # Without a visible E, the second law would cover the first.
        shown = [
            f
            for f in findings
            if f is not None and (not f.fit.law.floor or has_irreducible_loss(f.fit))
        ]
        laws |= {f.fit.law.name for f in shown}
        alphas = [f.intervals.get("alpha") for f in shown]
        paths = [f.path for f in shown]
        draw_frontier(panel, study.frontiers[metric], [f.fit for f in shown], alphas, paths)
        panel.set(ylabel=metric_label(study, metric), xlabel=COMPUTE)
        legend_inside(panel)
        logarithmic(panel)
    hide_empty_panels(panels, len(metrics))
    censored = np.concatenate([study.frontiers[metric].censored for metric in metrics])
    legend_above(figure, _frontier_handles(laws, censored), 3 if len(metrics) > 1 else 2)
    size_legend(figure, styles, "$N$", marked=False)  # runs are lines without markers
    return figure


def draw_frontier(
    panel: Axes, frontier: Frontier, fits: list[Fit], alphas: Sequence[Interval | None] = (),
    paths: Sequence[SurfacePath | None] = (),
) -> None:  # fmt: skip
    """Draw frontier points, hollow if they are upper bounds, and laws with their bands.

    `alphas`: the intervals of α in the legend, one for each fit. `paths`: the surfaces that the
    laws follow from, one for each fit, None for one of the points. A law of points without an
    interval has no band.
    """
    for selected, face in ((~frontier.censored, BLUE), (frontier.censored, "white")):
        panel.plot(
            frontier.flops[selected], frontier.loss[selected], "o", color=BLUE, mfc=face, zorder=4,
            ms=marker_size(len(frontier.flops), 2.0), mew=0.9,
        )  # fmt: skip
    for index, fit in enumerate(fits):
        path, alpha = paths[index] if paths else None, alphas[index] if alphas else None
        band: bool | tuple[Any, Any, Any] = alpha is not None
        if path:
            flops = np.geomspace(frontier.flops[0], frontier.flops[-1], 50)
            band = (flops, *path.band(fit.law, flops))
        draw_law(panel, fit, band=band, label=fit_label(fit, alpha), ahead=0.15)
    panel.set(xscale="log", yscale="log")


def _frontier_handles(laws: set[str], censored: NDArray[np.bool_]) -> list[Any]:
    dots = (("frontier", BLUE, ~censored), ("frontier, upper bound only", "white", censored))
    handles: list[Any] = [
        Line2D([], [], ls="", marker="o", color=BLUE, mfc=face, mew=0.9, label=name)
        for name, face, which in dots if which.any()
    ]  # fmt: skip
    # [1:]: without the handle "measured", because frontier points have their own.
    lines = law_handles([law for law in ("pure", "floor") if law in laws], None, band=False)[1:]
    return [*handles, *lines, Patch(color=GREY, alpha=0.3, lw=0, label="95 % of the law")]


@styled
def frontier_figure(
    frontier: Frontier,
    law: Law = PURE,
    objective: str = "squares",
    *,
    xlabel: str = COMPUTE,
    ylabel: str = "L",
) -> Figure:
    """One frontier with its candidates and the law along it. Raises FitError for too few points."""
    figure, ((panel,),) = new_figure(SINGLE, 2.6)
    candidates = frontier.candidates
    panel.plot(candidates.flops, candidates.loss, ".", ms=2, color=GREY, alpha=0.5, mew=0, zorder=1)
    # The default is that of sweeps (docs/laws.md); that of fit_law is the Huber loss.
    fitted = frontier.of_law
    fit = fit_law(law, frontier.flops[fitted], frontier.loss[fitted], objective)
    draw_frontier(panel, frontier, [fit], [frontier_interval(fit, "alpha", frontier, None)])
    panel.set(xlabel=xlabel, ylabel=ylabel)
    legend_inside(panel)
    logarithmic(panel)
    return figure


def draw_runs(
    panel: Axes,
    rows: pd.DataFrame,
    x: str,
    metric: str,
    size: str,
    styles: dict[float, SeriesStyle],
) -> None:
    """Draw each run's evaluations as a thin line in the style of its size; a dot if it has one."""
    known = rows.dropna(subset=[x, metric, size])
    # Runs of several seeds or sweeps can share a name; each is a line of its own.
    by_run = known.groupby([size, "trial", *(_label(known, name) for name in _RUN)])
    runs = known.assign(run=by_run.ngroup(), evaluations=by_run[x].transform("size"))
    runs = runs.sort_values(["run", x], kind="stable")
    for _, of_size in runs.groupby(size):
        style = styles[float(of_size[size].iloc[0])]
        # One artist for all runs of a size: thousands of artists take seconds to draw.
        single = of_size.evaluations == 1
        options: dict[str, Any] = {"color": style.colour, "lw": 0.9, "ms": 2.5, "zorder": 2}
        dots, lines = of_size[single], of_size[~single]
        if len(lines):
            ends = np.flatnonzero(np.diff(lines.run)) + 1
            # NaN between two runs ends a line.
            at = (np.insert(lines[name].to_numpy(float), ends, np.nan) for name in (x, metric))
            panel.plot(*at, ls=style.line, **options)
        if len(dots):
            panel.plot(dots[x], dots[metric], ls="none", marker=".", **options)
    panel.set(xscale="log", yscale="log")


def _label(rows: pd.DataFrame, column: str) -> pd.Series:
    """Values of a column for grouping; -1 for missing ones, because groupby would drop them."""
    return rows[column].astype(object).where(rows[column].notna(), -1)


def _styles_of_sizes(rows: pd.DataFrame, size: str) -> dict[float, SeriesStyle]:
    return size_styles(float(each) for each in rows[size].dropna().unique())


@styled
def curves(study: Study) -> Figure | None:
    """Held-out loss and error of each run against its tokens; None if no run has two evaluations
    with tokens.
    """
    rows = study.table.rows
    metrics = [
        metric for metric in ("val_loss", "val_error")
        if len(rows.dropna(subset=["tokens_seen", metric, study.size]))
    ]  # fmt: skip
    if not metrics or rows.dropna(subset=["tokens_seen"]).groupby("trial").size().max() < 2:
        return None
    figure, panels = panel_grid(len(metrics), 2.0, 0.4 if len(metrics) > 1 else 0.9)
    styles = _styles_of_sizes(rows, study.size)
    for panel, metric in zip(panels.flat, metrics, strict=True):
        draw_runs(panel, rows, "tokens_seen", metric, study.size, styles)
        logarithmic(panel)
        panel.set(xlabel=TOKENS, ylabel=metric_label(study, metric))
    size_legend(figure, styles, "$N$", marked=False)
    return figure


@styled
def rates(study: Study) -> Figure | None:
    """Final loss against the peak learning rate, one line for each size; None if no size has two
    rates.
    """
    size = study.size
    finals = study.table.finals.dropna(subset=[size, "learning_rate", "val_loss"])
    if finals.empty or finals.groupby(size).learning_rate.nunique().max() < 2:
        return None
    figure, ((panel,),) = new_figure(SINGLE, 2.9)
    styles = size_styles(float(each) for each in finals[size].unique())
    for _, runs in finals.groupby(size):
        style = styles[float(runs[size].iloc[0])]
        mean = runs.groupby("learning_rate").val_loss.mean()
        panel.plot(mean.index, mean, color=style.colour, ls=style.line, lw=1)
        panel.plot(runs.learning_rate, runs.val_loss, style.marker, color=style.colour, ms=3.2)
        best = mean.nsmallest(1)
        panel.plot(best.index, best, "o", ms=8, mfc="none", mew=0.8, color=style.colour)
    panel.set(xscale="log", yscale="log", xlabel="peak learning rate")
    panel.set_ylabel(metric_label(study, "val_loss"))
    logarithmic(panel)
    size_legend(figure, styles, "$N$")
    return figure
