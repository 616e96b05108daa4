"""Figures along the training: runs and their frontier in compute, curves in tokens, rates."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from analysis.compute_optimal.frontier import Frontier
from analysis.compute_optimal.frontier_band import Band, band
from analysis.fitting.fit import Fit, fit_law
from analysis.fitting.laws import PURE, Law
from analysis.plots.axes import logarithmic
from analysis.plots.law_panel import draw_law, law_handles, numbers
from analysis.plots.laws import metric_label, wants_floor
from analysis.plots.style import (
    BLUE,
    GREY,
    SINGLE,
    Look,
    by_size,
    dot_size,
    finish,
    key_above,
    key_inside,
    pairs,
    sheet,
    size_key,
    styled,
)
from analysis.study import METRICS, Study

COMPUTE, TOKENS = "$C$, training compute (FLOP)", "$D$, training tokens seen"
_RESAMPLES = 400  # of a band that is only looked at
_RUN = ("sweep", "seed")  # what else tells runs of one size and name apart


@styled
def laws_in_compute(study: Study) -> Figure | None:
    """Each run's held-out curve against the FLOPs it spent, and the law along their frontier."""
    found = [m for m in METRICS if study.get(m, "train_flops", "pure") and m in study.frontiers]
    if not found:
        return None
    figure, panels = pairs(len(found), 2.1, 0.6 if len(found) > 1 else 1.1)
    looks = _size_looks(study.table.rows, study.size)
    laws: set[str] = set()
    for panel, metric in zip(panels.flat, found, strict=False):
        draw_runs(panel, study.table.rows, "train_flops", metric, study.size, looks)
        findings = [study.get(metric, "train_flops", law) for law in ("pure", "floor")]
        fits = [
            f.fit for f in findings if f is not None and (not f.fit.law.floor or wants_floor(f.fit))
        ]
        laws |= {fit.law.name for fit in fits}
        draw_frontier(panel, study.frontiers[metric], fits)
        panel.set(ylabel=metric_label(study, metric), xlabel=COMPUTE)
        key_inside(panel)
        logarithmic(panel)
    finish(panels, len(found))
    held = np.concatenate([study.frontiers[metric].censored for metric in found])
    key_above(figure, _frontier_handles(laws, held), 3 if len(found) > 1 else 2)
    size_key(figure, looks, "$N$", marked=False)
    return figure


def draw_frontier(panel: Axes, found: Frontier, fits: list[Fit]) -> None:
    """Frontier points, hollow where they are upper bounds, and their laws with resampled bands."""
    for held, face in ((~found.censored, BLUE), (found.censored, "white")):
        panel.plot(
            found.flops[held], found.loss[held], "o", color=BLUE, mfc=face, zorder=4,
            ms=dot_size(len(found.flops), 2.0), mew=0.9,
        )  # fmt: skip
    for fit in fits:
        drawn = frontier_band(found, fit)
        about = (drawn.flops, drawn.low, drawn.high) if drawn else False
        alpha = drawn.interval("alpha") if drawn else None
        draw_law(panel, fit, band=about, label=numbers(fit, alpha), on=0.15)
    panel.set(xscale="log", yscale="log")


def frontier_band(found: Frontier, fit: Fit) -> Band | None:
    """The band of the law along the frontier, resampled by run; None where too few carry it."""
    try:
        return band(found, fit.law, fit.objective.name, resamples=_RESAMPLES)
    except ValueError:  # two runs, or resamples that hold too few points: drawn without a band
        return None


def _frontier_handles(laws: set[str], censored: NDArray[np.bool_]) -> list[Any]:
    dots = (("frontier", BLUE, ~censored), ("frontier, upper bound only", "white", censored))
    handles: list[Any] = [
        Line2D([], [], ls="", marker="o", color=BLUE, mfc=face, mew=0.9, label=name)
        for name, face, which in dots if which.any()
    ]  # fmt: skip
    lines = law_handles([law for law in ("pure", "floor") if law in laws], None, band=False)[1:]
    return [*handles, *lines, Patch(color=GREY, alpha=0.3, lw=0, label="95 %, runs resampled")]


@styled
def frontier_figure(
    found: Frontier, law: Law = PURE, *, xlabel: str = COMPUTE, ylabel: str = "L"
) -> Figure:
    """A frontier alone, its candidates and the law along it. Raises FitError for too few points."""
    figure, ((panel,),) = sheet(SINGLE, 2.6)
    every = found.candidates
    panel.plot(every.flops, every.loss, ".", ms=2, color=GREY, alpha=0.5, mew=0, zorder=1)
    draw_frontier(panel, found, [fit_law(law, found.flops, found.loss, "squares")])
    panel.set(xlabel=xlabel, ylabel=ylabel)
    key_inside(panel)
    logarithmic(panel)
    return figure


def draw_runs(
    panel: Axes, rows: pd.DataFrame, x: str, metric: str, size: str, looks: dict[float, Look]
) -> None:
    """Each run's evaluations as a thin line in the look of its size; a dot where it is just one."""
    known = rows.dropna(subset=[x, metric, size])
    for _, run in known.groupby([size, "trial", *(_label(known, n) for n in _RUN)]):
        look, lone = looks[float(run[size].iloc[0])], len(run) == 1
        run = run.sort_values(x)
        panel.plot(
            run[x], run[metric], color=look.colour, lw=0.9,
            ls="none" if lone else look.line, marker="." if lone else None, ms=2.5, zorder=2,
        )  # fmt: skip
    panel.set(xscale="log", yscale="log")


def _label(rows: pd.DataFrame, column: str) -> pd.Series:
    """Values of a column to group by, where what is not known is a group too."""
    return rows[column].astype(object).where(rows[column].notna(), -1)


def _size_looks(rows: pd.DataFrame, size: str) -> dict[float, Look]:
    return by_size(float(each) for each in rows[size].dropna().unique())


@styled
def curves(study: Study) -> Figure | None:
    """Held-out loss and error of each run against its tokens; None where no run knows them."""
    rows = study.table.rows
    found = [
        metric for metric in ("val_loss", "val_error")
        if len(rows.dropna(subset=["tokens_seen", metric, study.size]))
    ]  # fmt: skip
    if not found or rows.dropna(subset=["tokens_seen"]).groupby("trial").size().max() < 2:
        return None
    figure, panels = pairs(len(found), 2.0, 0.4 if len(found) > 1 else 0.9)
    looks = _size_looks(rows, study.size)
    for panel, metric in zip(panels.flat, found, strict=True):
        draw_runs(panel, rows, "tokens_seen", metric, study.size, looks)
        logarithmic(panel)
        panel.set(xlabel=TOKENS, ylabel=metric_label(study, metric))
    size_key(figure, looks, "$N$", marked=False)
    return figure


@styled
def rates(study: Study) -> Figure | None:
    """Final loss against the peak learning rate, a line a size; None without two rates."""
    size = study.size
    finals = study.table.finals.dropna(subset=[size, "learning_rate", "val_loss"])
    if finals.empty or finals.groupby(size).learning_rate.nunique().max() < 2:
        return None
    figure, ((panel,),) = sheet(SINGLE, 2.9)
    looks = by_size(float(each) for each in finals[size].unique())
    for _, runs in finals.groupby(size):
        look = looks[float(runs[size].iloc[0])]
        mean = runs.groupby("learning_rate").val_loss.mean()
        panel.plot(mean.index, mean, color=look.colour, ls=look.line, lw=1)
        panel.plot(runs.learning_rate, runs.val_loss, look.marker, color=look.colour, ms=3.2)
        best = mean.nsmallest(1)
        panel.plot(best.index, best, "o", ms=8, mfc="none", mew=0.8, color=look.colour)
    panel.set(xscale="log", yscale="log", xlabel="peak learning rate")
    panel.set_ylabel(metric_label(study, "val_loss"))
    logarithmic(panel)
    size_key(figure, looks, "$N$")
    return figure
