r"""Figures for a paper: one panel of one law each, at the width of a column, with LaTeX captions.

No text is smaller than 7 pt, also in the narrowest usual column (3.18 in, `article` with
`twocolumn`). Labels therefore have no subscripts; the caption has the symbols.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.compute_optimal.allocation import Approaches
from analysis.compute_optimal.isoflop import LOG_PARABOLA, PARABOLA, SPLINE
from analysis.law_result import METRICS, VARIABLES, LawResult
from analysis.plots.allocation import (
    approach_handle,
    draw_allocation,
    isoflop_figure,
    with_interval,
)
from analysis.plots.axes import logarithmic
from analysis.plots.compute import COMPUTE, draw_frontier, draw_runs
from analysis.plots.law_panel import draw_law, draw_points, fit_label
from analysis.plots.laws import has_irreducible_loss
from analysis.plots.laws import scales as scales_figure
from analysis.plots.style import (
    STYLE,
    legend_above,
    legend_inside,
    new_figure,
    size_legend,
    size_styles,
)
from analysis.plots.surface import data_legend, draw_surface, lines_of_data
from analysis.study import Study

WIDTH = 3.3  # inches
FORMATS = ("pdf", "png")
# In a column of 3.18 in, 7.5 pt become 7.2 pt.
_SMALLEST = 7.5
_STYLE = STYLE | {
    name: max(STYLE[name], _SMALLEST) + (0.5 if name == "axes.labelsize" else 0)
    for name in ("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize",
                 "ytick.labelsize", "legend.fontsize", "legend.title_fontsize")
}  # fmt: skip
_SIZES = {
    "params_blocks": "$N$, weights of the blocks",
    "params_total": "$N$, all parameters",
}
_TEX = {
    "L_mean": r"L_{\mathrm{mean}}", "L_last": r"L_{\mathrm{last}}",
    "Err_mean": r"\mathrm{Err}_{\mathrm{mean}}", "Err_last": r"\mathrm{Err}_{\mathrm{last}}",
    "N": "N", "N_total": r"N_{\mathrm{total}}", "C": "C",
}  # fmt: skip
_APPROACHES = {1: "envelope", 2: "isoFLOPs", 3: "surface"}
_CURVES = {
    LOG_PARABOLA: r"parabolas of $\log L$ in $\log N$",
    PARABOLA: r"parabolas of $L$ in $\log N$",
    SPLINE: r"Akima splines of $\log L$ in $\log N$",
}
_LINES = (
    "Line: power law, with a fitted irreducible loss $E$ where named; dotted: beyond the data. "
    r"Band: 95\,\% of the law. Brackets: 95\,\% intervals; a law without them has none."
)


@dataclass(frozen=True)
class PaperFigure:
    """A figure of one panel: the name of its file, its caption in LaTeX, and its drawing."""

    name: str
    caption: str
    draw: Callable[[], Figure]

    def files(self) -> dict[str, bytes]:
        """The content of each file by its name; the same figure gives the same bytes."""
        with mpl.rc_context(_STYLE):
            figure, contents = self.draw(), {}
            for kind in FORMATS:
                content = BytesIO()
                dateless = {"CreationDate": None} if kind == "pdf" else None
                figure.savefig(content, format=kind, metadata=dateless)
                figure.set_layout_engine(None)  # keep the first layout for the other format
                contents[f"{self.name}.{kind}"] = content.getvalue()
        return contents


def paper_figures(study: Study) -> tuple[PaperFigure, ...]:
    """A figure of each law of `study`; nothing is drawn yet."""
    figures = [
        _law(study, metric, variable)
        for metric in METRICS
        for variable in VARIABLES
        if _shown(study, metric, variable)
    ]
    figures += [_surface(study, metric) for metric in METRICS if metric in study.surfaces]
    if study.scales:
        caption = "Loss of each scale against $N$, each with its own power law."
        figures.append(PaperFigure("scales_vs_N", caption, partial(_draw_scales, study)))
    if study.allocation is not None:
        figures += _allocation(study, study.allocation)
    return tuple(figures)


def _shown(study: Study, metric: str, variable: str) -> list[LawResult]:
    """The laws of one figure: the pure law, and the law with E if E is visible. Empty for a law in
    N alone of runs of different D, if a surface describes them.
    """
    laws = [study.get(metric, variable, name) for name in ("pure", "floor", "logit")]
    found = [law for law in laws if law is not None]
    if any(study.is_mixed(law) for law in found) and metric in study.surfaces:
        return []
    if variable == "train_flops" and metric not in study.frontiers:
        return []
    pure = [law for law in found if law.fit.law.name != "floor"][:1]
    with_E = [law for law in found if law.fit.law.floor]
    return pure + [law for law in with_E if not pure or has_irreducible_loss(law.fit)]


def _law(study: Study, metric: str, variable: str) -> PaperFigure:
    symbol, what, _ = METRICS[metric]
    x = VARIABLES[variable][0]
    against = (
        "the training compute $C$; thin lines: runs, dark for small and bright for large models; "
        "points: the frontier, hollow if only an upper bound"
        if variable == "train_flops"
        else f"${_TEX[x]}$, {VARIABLES[variable][1]}"
    )
    caption = f"${_TEX[symbol]}$ ({what}) against {against}. {_LINES}"
    draw = _draw_compute_law if variable == "train_flops" else _draw_law
    return PaperFigure(f"{symbol}_vs_{x}", caption, partial(draw, study, metric, variable))


def _draw_law(study: Study, metric: str, variable: str) -> Figure:
    figure, ((panel,),) = new_figure(WIDTH, 2.4)
    laws = _shown(study, metric, variable)
    draw_points(panel, np.array(laws[0].x), np.array(laws[0].y))
    for law in laws:
        draw_law(panel, law.fit, label=fit_label(law.fit, law.intervals.get("alpha")))
    _labels(panel, study, metric, _SIZES[variable])
    panel.set(xscale="log", yscale="log")
    _legend(panel, laws)
    logarithmic(panel)
    return figure


def _draw_compute_law(study: Study, metric: str, variable: str) -> Figure:
    figure, ((panel,),) = new_figure(WIDTH, 3.0)
    laws, rows = _shown(study, metric, variable), study.table.rows
    styles = size_styles(float(each) for each in rows[study.size].dropna().unique())
    draw_runs(panel, rows, variable, metric, study.size, styles)
    draw_frontier(
        panel, study.frontiers[metric], [law.fit for law in laws],
        [law.intervals.get("alpha") for law in laws], [law.path for law in laws],
    )  # fmt: skip
    _labels(panel, study, metric, COMPUTE)
    _legend(panel, laws)
    logarithmic(panel)
    size_legend(figure, styles, _SIZES[study.size], marked=False)
    return figure


def _labels(panel: Axes, study: Study, metric: str, xlabel: str) -> None:
    panel.set(xlabel=xlabel, ylabel=f"{METRICS[metric][1]} ({study.unit(metric)})")


def _legend(panel: Axes, laws: Sequence[LawResult]) -> None:
    """The legend of the lines of laws, below all points."""
    lines, labels = panel.get_legend_handles_labels()
    labels = [
        label.replace(", E", "\nE") + (", no law" if law.no_law else "")
        for label, law in zip(labels, laws, strict=True)
    ]
    legend_inside(panel, handles=lines, labels=labels)


def _surface(study: Study, metric: str) -> PaperFigure:
    symbol, what, _ = METRICS[metric]
    size, data = VARIABLES[study.size]
    caption = (
        f"${_TEX[symbol]}$ ({what}) against ${_TEX[size]}$, {data}, at constant numbers of "
        r"training tokens $D$. Lines: the surface $E + A N^{-\alpha} + B D^{-\beta}$; points: "
        r"runs, dark for small and bright for large $D$. Brackets: 95\,\% intervals."
    )
    return PaperFigure(f"{symbol}_surface", caption, partial(_draw_surface, study, metric))


def _draw_surface(study: Study, metric: str) -> Figure:
    figure, ((panel,),) = new_figure(WIDTH, 2.8)
    surface = study.surfaces[metric]
    styles = lines_of_data([surface])
    draw_surface(panel, surface, styles)
    _labels(panel, study, metric, _SIZES[study.size])
    data_legend(figure, styles, 4)
    return figure


def _draw_scales(study: Study) -> Figure:
    figure = scales_figure(study)
    assert figure is not None  # the study has losses of scales
    (panel,) = figure.axes
    panel.set(xlabel=_SIZES[study.size], ylabel=f"loss of one scale ({study.unit('val_loss')})")
    return figure


def _allocation(study: Study, approaches: Approaches) -> list[PaperFigure]:
    """The parabolas, and the best N and D by each approach."""
    figures = []
    if approaches.isoflops.minima:
        caption = (
            f"${_TEX['L_mean']}$ against $N$ at constant training compute $C$. Lines: "
            f"{_CURVES[approaches.isoflops.curve]}; "
            r"stars: their minima, with 95\,\% intervals of $N$."
        )
        draw = partial(
            isoflop_figure, approaches.isoflops, xlabel=_SIZES[study.size],
            ylabel=f"{METRICS['val_loss'][1]} ({study.unit('val_loss')})",
        )  # fmt: skip
        figures.append(PaperFigure("isoflop_curves", caption, draw))
    if approaches.estimates:
        for best, what in (("N", "size $N$"), ("D", "number of training tokens $D$")):
            caption = (
                f"The best {what} for a training compute $C$, by each approach, with the exponent "
                rf"of $C$ and its 95\,\% interval, where it has one. Band: 95\,\% of the surface's "
                rf"optimum."
            )
            draw = partial(_draw_allocation, study, approaches, best)
            figures.append(PaperFigure(f"best_{best}_vs_C", caption, draw))
    return figures


def _draw_allocation(study: Study, approaches: Approaches, best: str) -> Figure:
    drawn = {name: new_figure(WIDTH, 2.7) for name in ("N", "D")}
    panels = {name: grid[0, 0] for name, (_, grid) in drawn.items()}
    draw_allocation(panels["N"], panels["D"], approaches)
    handles: list[Line2D] = []
    for each in approaches.estimates:
        value, span = (each.a, each.a_interval) if best == "N" else (each.b, each.b_interval)
        label = f"{_APPROACHES[each.number]}: exponent {with_interval(value, span)}"
        handles.append(approach_handle(each, label))
    ylabel = _SIZES[study.size] if best == "N" else "$D$, training tokens"
    panels[best].set(xlabel=COMPUTE, ylabel="best " + ylabel)
    figure = drawn[best][0]
    legend_above(figure, handles, 1)
    return figure
